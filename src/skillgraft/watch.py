"""How a run shows itself: a live stage list on a terminal, plain lines elsewhere, JSON lines for scripts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from skillgraft.planning import PlannedStage

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


def clock(seconds: float) -> str:
    """Return `42 s` or `3 min 05 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Live:
    """The list of all stages with bars, for a terminal. Use as a context manager; `kinds` maps stage names to kinds."""

    def __init__(self, console: Console, kinds: Mapping[str, str]) -> None:
        columns = (
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}", style="dim"),
        )
        self.progress = Progress(*columns, console=console)
        width, kind_width = (max(map(len, words), default=0) for words in (kinds, kinds.values()))
        self.tasks: dict[str, TaskID] = {
            name: self.progress.add_task(
                f"{name:<{width}}  [dim]{kind:<{kind_width}}[/]", start=False, total=None, note="waits"
            )
            for name, kind in kinds.items()
        }

    def __enter__(self) -> Live:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, message: str) -> None:
        """Show one line above the list."""
        self.progress.console.print(message, style="dim", markup=False)

    def started(self, stage: PlannedStage) -> None:
        """Start the stage's clock."""
        self.progress.start_task(self.tasks[stage.name])
        self.progress.update(self.tasks[stage.name], note="")

    def moved(self, stage: PlannedStage, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Move the stage's bar."""
        self.progress.update(self.tasks[stage.name], completed=step, total=steps, note=summary(metrics))

    def finished(self, stage: PlannedStage, seconds: float, cached: bool) -> None:
        """Fill the stage's bar."""
        note = "cached" if cached else clock(seconds)
        self.progress.start_task(self.tasks[stage.name])
        self.progress.update(self.tasks[stage.name], total=1, completed=1, note=note)


class Lines:
    """Plain lines, for a log file: a stage's start, its progress at most every `seconds`, its end."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds = seconds
        self.last = 0.0

    def say(self, message: str) -> None:
        """Print a line."""
        print(message, flush=True)

    def started(self, stage: PlannedStage) -> None:
        """Print that a stage begins."""
        self.last = time.monotonic()
        self.say(f"{stage.name} ({stage.stage.kind}) …")

    def moved(self, stage: PlannedStage, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Print a stage's progress if the last line is old enough."""
        if time.monotonic() - self.last >= self.seconds:
            self.last = time.monotonic()
            self.say(f"  {stage.name}: {step}/{steps}  {summary(metrics)}")

    def finished(self, stage: PlannedStage, seconds: float, cached: bool) -> None:
        """Print that a stage is done."""
        self.say(f"{stage.name} ({stage.stage.kind}): {'cached' if cached else clock(seconds)}")


class Events:
    """One JSON object a line on standard output, for scripts."""

    def _emit(self, event: str, **fields: object) -> None:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()

    def say(self, message: str) -> None:
        """Emit `message`."""
        self._emit("message", text=message)

    def started(self, stage: PlannedStage) -> None:
        """Emit `started`."""
        self._emit("started", stage=stage.name, kind=stage.stage.kind)

    def moved(self, stage: PlannedStage, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Emit `progress`."""
        self._emit("progress", stage=stage.name, step=step, steps=steps, metrics=dict(metrics))

    def finished(self, stage: PlannedStage, seconds: float, cached: bool) -> None:
        """Emit `finished`."""
        self._emit("finished", stage=stage.name, seconds=round(seconds, 2), cached=cached)
