"""A stage's context and result: where it reads and writes, who is told of its progress, what it returns. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from skillgraft.settings.base import stage_named
from skillgraft.support.progress import Progress, silent


def _say_nothing(message: str) -> None:
    """Show nothing; a function of the module, so that it can be pickled."""


@dataclass(frozen=True)
class Reporter:
    """Who is told how a stage goes: `progress(step, steps, metrics)` and `say(message)`. Stays in its own process."""

    progress: Progress = silent
    say: Callable[[str], None] = _say_nothing


SILENT = Reporter()


@dataclass(frozen=True)
class Context:
    """Where a stage reads and writes; all but `reporter` can be pickled and sent to another process.

    `inputs` maps each reference to its directory; `about` each row of a table to what is known of it. `tracking` is
    where training curves are kept for who asks for them, beyond the stage's end.
    """

    name: str
    inputs: Mapping[str, Path]
    out: Path
    work: Path
    seed: int
    recipe: str
    base_id: str | None = None
    checkpoint_seconds: float = 300.0
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tracking: Path = Path("tracking")
    reporter: Reporter = SILENT

    def data(self, named: Path) -> Path:
        """Return where documents or questions lie: the result of the stage that is named, or the path."""
        stage = stage_named(named)
        return named if stage is None else self.inputs[stage]

    @property
    def progress(self) -> Progress:
        """Show progress: (step, steps, metrics)."""
        return self.reporter.progress


@dataclass(frozen=True)
class StageResult:
    """What a finished stage records of itself in `stage.json`, for the report and for later estimates.

    `details` are the kind's own numbers; `curve` is the training log by step, `headline` its metrics worth a figure.
    """

    details: Mapping[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    flops: float | None = None
    precision: str | None = None
    processes: int | None = None
    curve: Sequence[Mapping[str, float]] | None = None
    headline: Sequence[str] | None = None

    def facts(self) -> dict[str, Any]:
        """Return the record's `facts`: one flat mapping, without what does not apply."""
        common = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "details"}
        return {**self.details, **{name: value for name, value in common.items() if value is not None}}
