"""What a stage is given beside its settings, and what all that train or generate have in common. Loads no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillgraft.recipe import schema
from skillgraft.support.progress import Progress, silent

Stage = Callable[[Any, "Context"], dict[str, Any]]


@dataclass(frozen=True)
class Context:
    """Where a stage reads and writes. `inputs` maps each reference to its directory; `about` to what is known of it.

    `tracking` is where training curves are kept for who asks for them, beyond the stage's end.
    """

    name: str
    inputs: Mapping[str, Path]
    out: Path
    work: Path
    seed: int
    recipe: str
    base_id: str | None = None
    progress: Progress = silent
    checkpoint_seconds: float = 300.0
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tracking: Path = Path("tracking")
    say: Callable[[str], None] = lambda message: None

    def data(self, named: Path) -> Path:
        """Return where documents or questions lie: the result of the synthesize stage that is named, or the path."""
        stage = schema.synthesis_named(named)
        return named if stage is None else self.inputs[stage]


def in_one_precision(run: Stage) -> Stage:
    """Let a stage that trains or generates go on in the precision in which it began."""

    @functools.wraps(run)
    def wrapped(stage: Any, context: Context) -> dict[str, Any]:
        from skillgraft.train.precision import one_precision

        with one_precision(context.work):
            return run(stage, context)

    return wrapped
