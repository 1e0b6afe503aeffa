"""Run observers without a terminal: plain lines, or JSON events for scripts (`docs/reference/events.md`)."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.errors import SkillgraftError
from skillgraft.pipeline.eta import Pace
from skillgraft.stages.planned import PlannedStage
from skillgraft.support.units import duration

if TYPE_CHECKING:
    from skillgraft.recipe.schema import Recipe
    from skillgraft.run import Run

SHOWN = {
    "reward": "reward",
    "frac_reward_zero_std": "no variance",
    "completions/mean_length": "tokens",
    "loss": "loss",
}
"""Metrics shown beside a stage's bar. Of RL not the loss, which says nothing there."""


def summary(metrics: Mapping[str, float]) -> str:
    """Return the metrics worth a glance, as `reward 0.21 · no variance 0.12 · tokens 9.4`."""
    hidden = {"loss"} if "reward" in metrics else set()
    parts = [f"{label} {metrics[key]:.3g}" for key, label in SHOWN.items() if key in metrics and key not in hidden]
    return " · ".join(parts)


class Lines:
    """Plain lines on standard error: a stage's start, its progress at most every `seconds`, its end."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds = seconds
        self.last = 0.0
        self.pace = Pace()

    def planned(self, recipe: Recipe, base: Path, stages: Sequence[PlannedStage]) -> None:
        """Print how much there is to do."""
        waiting = sum(not stage.cached for stage in stages)
        self.say(f"{recipe.name}: {waiting} of {len(stages)} stages to run")

    def say(self, message: str) -> None:
        """Print a line."""
        print(message, file=sys.stderr, flush=True)

    def started(self, stage: PlannedStage) -> None:
        """Print that a stage begins."""
        self.last, self.pace = time.monotonic(), Pace()
        self.say(f"{stage.name} ({stage.kind.name}) …")

    def moved(self, stage: PlannedStage, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Print a stage's progress if the last line is old enough."""
        self.pace.moved(step, steps)
        if time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            left = self.pace.left()
            parts = [f"{share(step, steps)}", summary(metrics), f"{duration(left)} left" if left is not None else ""]
            self.say(f"  {stage.name}: {'  '.join(filter(None, parts))}")

    def finished(self, stage: PlannedStage, seconds: float, cached: bool) -> None:
        """Print that a stage is done."""
        self.say(f"{stage.name} ({stage.kind.name}): {'cached' if cached else duration(seconds)}")

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        """Print that a stage ended without a result."""
        self.say(f"{stage.name} ({stage.kind.name}): {'stopped' if stopped(error) else 'failed'}")


class Events:
    """One JSON object a line on standard output; while it is entered, what libraries print goes to standard error."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.out = sys.stdout
        self.seconds = seconds
        self.last = 0.0
        self.pace = Pace()

    def __enter__(self) -> Events:
        self._elsewhere = contextlib.redirect_stdout(sys.stderr)
        self._elsewhere.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._elsewhere.__exit__(kind, error, trace)
        if error is not None:
            self._emit("run_failed", error=_said(error), interrupted=stopped(error))

    def _emit(self, event: str, **fields: object) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.out.write(json.dumps(_finite({"event": event, "time": now, **fields}), allow_nan=False) + "\n")
        self.out.flush()

    def say(self, message: str) -> None:
        """Emit `message`."""
        self._emit("message", text=message)

    def planned(self, recipe: Recipe, base: Path, stages: Sequence[PlannedStage]) -> None:
        """Emit `run_started`."""
        rows = [{"stage": stage.name, "kind": stage.kind.name, "cached": stage.cached} for stage in stages]
        self._emit("run_started", name=recipe.name, base=str(base), stages=rows)

    def started(self, stage: PlannedStage) -> None:
        """Emit `stage_started`."""
        self.last, self.pace = 0.0, Pace()
        self._emit("stage_started", stage=stage.name, kind=stage.kind.name)

    def moved(self, stage: PlannedStage, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Emit `stage_progress`; without metrics at most every `seconds`."""
        self.pace.moved(step, steps)
        if not metrics and time.monotonic() - self.last < self.seconds:
            return
        self.last = time.monotonic()
        left = self.pace.left()
        self._emit(
            "stage_progress",
            stage=stage.name,
            kind=stage.kind.name,
            step=step,
            steps=steps,
            seconds_left=None if left is None else round(left, 1),
            metrics={key: value for key, value in metrics.items() if key not in ("step", "time")},
        )

    def finished(self, stage: PlannedStage, seconds: float, cached: bool) -> None:
        """Emit `stage_cached` or `stage_finished`."""
        event = "stage_cached" if cached else "stage_finished"
        self._emit(event, stage=stage.name, kind=stage.kind.name, seconds=round(seconds, 2))

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        """Emit `stage_failed`."""
        self._emit(
            "stage_failed", stage=stage.name, kind=stage.kind.name, error=_said(error), interrupted=stopped(error)
        )

    def run_finished(self, result: Run) -> None:
        """Emit `run_finished`, the last event of a run that went well."""
        self._emit(
            "run_finished",
            directory=str(result.directory),
            report=str(result.report),
            cached=result.cached,
            stages={name: str(path) for name, path in result.stages.items()},
            evaluations=result.evaluations,
        )


def stopped(error: BaseException) -> bool:
    """Return whether it was Ctrl-C that ended a stage."""
    return isinstance(error, KeyboardInterrupt)


def share(step: int, steps: int) -> str:
    """Return `34/150`; from a million on, as for bytes, `34%`."""
    return f"{step}/{steps}" if steps < 1_000_000 else f"{step / steps:.0%}"


def _finite(value: Any) -> Any:
    """Return JSON data with None for numbers JSON cannot represent."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _said(error: BaseException) -> str:
    if stopped(error):
        return "stopped"
    return str(error) if isinstance(error, SkillgraftError) else f"{type(error).__name__}: {error}"
