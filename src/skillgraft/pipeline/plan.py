"""Plan a run: what each stage reads, its content address, whether it is finished. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.errors import MissingPathError, naming
from skillgraft.recipe.schema import Recipe, check_data_stages, order
from skillgraft.settings.base import BASE, addressed, references
from skillgraft.stages import KINDS
from skillgraft.stages.kind import StageKind
from skillgraft.stages.planned import PlannedStage
from skillgraft.support.digest import digest
from skillgraft.support.extensions import origin

BESIDE_WEIGHTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
"""Files of a checkpoint that decide what it does, beside its weights."""


def plan(recipe: Recipe, base: Path, store: Path) -> list[PlannedStage]:
    """Return the stages in the order in which they run, each under the hash of all that decides its result.

    The hash covers the kind's code version, the resolved settings, the seed, the content of the data read and the
    hashes of the stages and directories referred to. Names and paths do not enter it, but for the names that a table
    holds: its own, and those of its rows.

    Raises:
        SkillgraftError: data or a referred directory is missing or wrong, found before anything runs.
    """
    planned: dict[str, PlannedStage] = {}
    for name in order(recipe):
        settings = recipe.stages[name]
        kind = KINDS[settings.kind]
        keys, inputs = {}, {}
        for _, reference in references(settings):
            if reference in planned:
                inputs[reference], keys[reference] = planned[reference].directory, planned[reference].key
            else:
                inputs[reference] = _directory(reference, base, name)
                keys[reference] = _identity(inputs[reference])
        check_data_stages(recipe, name)
        with naming(f"stages.{name}"):
            data = kind.read(settings)
        key = address(recipe.seed, name, kind, settings, keys, data)
        directory = store / f"{kind.name}-{key[:16]}"
        planned[name] = PlannedStage(name, kind, settings, key, directory, inputs, data)
    return list(planned.values())


def address(
    seed: int, name: str, kind: StageKind, settings: Any, keys: Mapping[str, str], data: Mapping[str, str]
) -> str:
    """Return the content address of a stage: `keys` are those of its references, `data` the digests of what it reads.

    The hash of an extension's kind covers the version of the package that brought it.
    """
    named = [[field, keys[reference]] for field, reference in references(settings)]
    names = [name, kind.names(settings)] if kind.makes == "table" else []
    return digest([kind.version, origin("stages", kind.name), seed, addressed(settings), named, names, dict(data)])


def _directory(reference: str, base: Path, stage: str) -> Path:
    if reference == BASE:
        return base
    path = Path(reference)
    if not path.is_dir():
        raise MissingPathError(
            f"stages.{stage}: {reference} is not a directory; expected a checkpoint, a skill or a stage's name"
        )
    return path


def _identity(directory: Path) -> str:
    """Return what a referred directory is by the content of the files that decide what it does."""
    if (directory / "skill.json").is_file():
        names = ("skill.json", "skill.safetensors")
        return digest([[name, fingerprint_file(directory / name)] for name in names])
    own = [[name, fingerprint_file(directory / name)] for name in BESIDE_WEIGHTS if (directory / name).is_file()]
    return digest([fingerprint_checkpoint(directory), own])
