"""Live progress of a run on a terminal: a tree of stages with bars, rewards and times, then memory and time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from skillgraft.cli.sparkline import ASCII_LEVELS, LEVELS, sparkline
from skillgraft.pipeline.estimate import Outlook
from skillgraft.pipeline.eta import Pace
from skillgraft.pipeline.observers import share, stopped, summary
from skillgraft.recipe.schema import Recipe
from skillgraft.settings.base import references
from skillgraft.stages.planned import PlannedStage
from skillgraft.support import resources
from skillgraft.support.units import duration

CURVE_WIDTH = 16
MARKS = {
    "waits": (" ", " ", "dim"),
    "cached": ("✓", "+", "dim"),
    "done": ("✓", "+", "green"),
    "failed": ("✗", "x", "red"),
    "stopped": ("■", "#", "yellow"),
}
"""State -> mark, mark in ASCII, style."""
GUIDES = {False: ("├─ ", "└─ ", "│  ", "   "), True: ("|- ", "`- ", "|  ", "   ")}
"""What stands before a stage: with others below, the last, and under these two; by whether ASCII is all there is."""


@dataclass
class Row:
    """One line of the tree: a stage and its progress."""

    stage: PlannedStage
    branch: tuple[bool, ...]
    """For each ancestor and the stage itself: whether it is the last of its siblings."""
    state: str = "waits"
    pace: Pace = field(default_factory=Pace)
    began: float = 0.0
    seconds: float = 0.0
    step: int = 0
    steps: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: list[float] = field(default_factory=list)


class LiveTree:
    """A run observer that draws on `console` while entered; each stage hangs under the one that it starts from."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self._clock = console, clock
        self.rows: dict[str, Row] = {}
        self.title = ""
        self._outlook: Outlook | None = None
        self._began = clock()
        self._ascii = console.options.ascii_only
        self._spinner = Spinner("line" if self._ascii else "dots", style="cyan")
        self._live = Live(console=console, get_renderable=self.picture, refresh_per_second=4)

    def __enter__(self) -> LiveTree:
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, message: str) -> None:
        """Show one line above the tree."""
        self.console.print(message, style="dim", markup=False, highlight=False)

    def planned(self, recipe: Recipe, base: Path, stages: Sequence[PlannedStage]) -> None:
        """Show the tree."""
        self.title = f"{recipe.name}, from {base.name}"
        self.rows = {stage.name: Row(stage, branch, pace=Pace(self._clock)) for stage, branch in branches(stages)}
        self._outlook = Outlook(stages, base)
        for stage in stages:
            if stage.cached:
                self.finished(stage, stage.record()["seconds"], cached=True)
        self._live.start()

    def started(self, stage: PlannedStage) -> None:
        """Start the stage's clock."""
        row = self.rows[stage.name]
        row.state, row.began = "runs", self._clock()

    def moved(self, stage: PlannedStage, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Move the stage's bar and its curve, of the reward or else the loss."""
        row = self.rows[stage.name]
        row.pace.moved(step, steps)
        row.step, row.steps = step, steps
        row.metrics = metrics if summary(metrics) else row.metrics
        value = metrics.get("reward", metrics.get("loss"))
        if value is not None:
            row.curve.append(value)

    def finished(self, stage: PlannedStage, seconds: float, cached: bool) -> None:
        """Mark the stage as done."""
        row = self.rows[stage.name]
        if row.state == "cached":  # was known from the plan on
            return
        row.state, row.seconds = "cached" if cached else "done", seconds
        if self._outlook is not None:
            self._outlook.finished(stage.name, seconds)

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        """Mark the stage as failed or stopped."""
        self.rows[stage.name].state = "stopped" if stopped(error) else "failed"

    def picture(self) -> RenderableType:
        """Return the tree as it is now."""
        table = Table.grid(padding=(0, 1, 0, 0), expand=True)
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, justify="right")
        table.add_column(no_wrap=True, overflow="crop" if self._ascii else "ellipsis", ratio=1)
        for row in self.rows.values():
            table.add_row(*self._cells(row))
        return Group(Text(self.title, "bold"), table, Text(self._plain(self.footer()), "dim"))

    def footer(self) -> str:
        """Return the line beneath the tree: time gone, time left, memory."""
        parts = [duration(self._clock() - self._began)]
        if (left := self.left()) is not None:
            seconds, measured = left
            parts.append(f"about {duration(seconds)} left{'' if measured else ', partly a guess'}")
        if used := resources.resident():
            parts.append(f"memory {used[0] / 2**30:.1f} GiB, at most {used[1] / 2**30:.1f}")
        if (free := resources.memory().available) is not None:
            parts.append(f"{free / 2**30:.1f} GiB free")
        return " · ".join(parts)

    def left(self) -> tuple[float, bool] | None:
        """Return the seconds left of the whole run and whether all were measured; None where nothing will run."""
        waiting = [name for name, row in self.rows.items() if row.state == "waits"]
        running = [row for row in self.rows.values() if row.state == "runs"]
        ended = any(row.state in ("failed", "stopped") for row in self.rows.values())
        if self._outlook is None or ended or not (waiting or running):
            return None
        seconds, measured = self._outlook.seconds(waiting)
        for row in running:
            left = row.pace.left()
            if left is None:
                whole, known = self._outlook.seconds([row.stage.name])
                left, measured = max(whole - (self._clock() - row.began), 0.0), measured and known
            seconds += left
        return seconds, measured

    def _cells(self, row: Row) -> list[RenderableType]:
        """Return a stage's cells: mark, name with its guides, kind, bar, and state with metrics."""
        quiet = "dim" if row.state in ("waits", "cached") else ""
        more, last, under_more, under_last = GUIDES[self._ascii]
        guides = [under_last if end else under_more for end in row.branch[:-1]] + [last if row.branch[-1] else more]
        name = Text.assemble(("".join(guides), "dim"), (row.stage.name, quiet))
        kind = Text(row.stage.kind.name, "dim")
        if row.state == "runs":
            left = row.pace.left()
            when = f"{duration(left)} left" if left is not None else duration(self._clock() - row.began)
            return [self._spinner, name, kind, _bar(row), Text.assemble(when, *self._course(row))]
        symbol, plain, style = MARKS[row.state]
        state = duration(row.seconds) if row.state == "done" else row.state
        return [
            Text(plain if self._ascii else symbol, style),
            name,
            kind,
            "",
            Text.assemble((state, quiet or style), *self._course(row)),
        ]

    def _course(self, row: Row) -> list[tuple[str, str]]:
        """Return the latest metrics and the curve so far, of a stage that has some."""
        if not row.curve:
            return []
        curve = sparkline(row.curve, CURVE_WIDTH, ASCII_LEVELS if self._ascii else LEVELS)
        return [(f"  {curve}", "cyan"), (f"  {self._plain(summary(row.metrics))}", "")]

    def _plain(self, text: str) -> str:
        return text.replace("·", "-") if self._ascii else text


def _bar(row: Row) -> RenderableType:
    if not row.steps:
        return ""
    both = Table.grid(padding=(0, 1, 0, 0))
    both.add_row(ProgressBar(total=row.steps, completed=row.step, width=12), share(row.step, row.steps))
    return both


def branches(stages: Sequence[PlannedStage]) -> list[tuple[PlannedStage, tuple[bool, ...]]]:
    """Return the stages in the order of the tree, each below the first stage that it refers to.

    With each stage come its flags per level: whether it, or its ancestor there, is the last of its siblings.
    """
    by_name = {stage.name: stage for stage in stages}
    children: dict[str | None, list[PlannedStage]] = {}
    for stage in stages:
        named = [reference for _, reference in references(stage.settings)]
        parent = named[0] if named and named[0] in by_name else None
        children.setdefault(parent, []).append(stage)
    ordered: list[tuple[PlannedStage, tuple[bool, ...]]] = []

    def visit(parent: str | None, above: tuple[bool, ...]) -> None:
        here = children.get(parent, [])
        for number, stage in enumerate(here):
            branch = (*above, number == len(here) - 1)
            ordered.append((stage, branch))
            visit(stage.name, branch)

    visit(None, ())
    return ordered
