"""`skillgraft init`: look at the documents, the base and the machine, and write a first recipe that runs as it is.

inputs.py  documents, questions, the base, a skill that fits it
write.py   the recipe's text, from that alone
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from skillgraft.errors import OutputExistsError, StorageError
from skillgraft.recipe.load import load_recipe
from skillgraft.recipe.schema import order
from skillgraft.stages import KINDS
from skillgraft.stages.costs import Costing, estimated_seconds
from skillgraft.starter.inputs import Cost, Start, survey
from skillgraft.starter.write import recipe_text
from skillgraft.support import resources

__all__ = ["Start", "Started", "write_recipe"]


@dataclass(frozen=True)
class Started:
    """Result of `init`: the recipe's file, what it was made from, and the cost of running it (None: unknown)."""

    recipe: Path
    start: Start
    cost: Cost | None


def write_recipe(
    documents: Path,
    *,
    base: str,
    out: Path,
    questions: Path | None = None,
    source: Path | None = None,
    memory: resources.Memory | None = None,
) -> Started:
    """Write a commented recipe for `documents` into the new file `out` and return what it takes.

    `questions` are asked about the documents (default: `questions.jsonl` beside them, if it is there). `source` is a
    folder of other documents with questions on which a skill is learnt, where no shipped one is to be taken.

    Raises:
        OutputExistsError: `out` is there already.
        SkillgraftError: documents, questions or base are missing or wrong; no file is written.
    """
    if os.path.lexists(out):
        raise OutputExistsError(f"{out} exists already and nothing is overwritten; give another file with -o")
    start = survey(documents, base, questions, source, memory or resources.memory())
    out = out.absolute()
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        try:
            partial.write_text(recipe_text(start, out), encoding="utf-8")
            cost = _check(partial, start.base.parameters)
            partial.write_text(recipe_text(start, out, cost), encoding="utf-8")
            os.link(partial, out)  # unlike a rename, this never replaces a file
        finally:
            partial.unlink(missing_ok=True)
    except FileExistsError as error:
        raise OutputExistsError(
            f"{out} exists already and nothing is overwritten; give another file with -o"
        ) from error
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}; give another file with -o") from error
    return Started(out, start, cost)


def _check(file: Path, parameters: int | None) -> Cost | None:
    """Read the recipe and its data as `run` would, and return what all of it takes."""
    recipe = load_recipe(file)
    stages = [recipe.stages[name] for name in order(recipe)]
    for stage in stages:
        KINDS[stage.kind].read(stage)
    if parameters is None:
        return None
    each = [KINDS[stage.kind].needs(stage, Costing(parameters)) for stage in stages]
    seconds = sum(estimated_seconds(needs.flops) for needs in each)
    return Cost(seconds, max(needs.memory for needs in each), sum(needs.disk for needs in each))
