"""Estimate what a plan costs: time, memory and disk, from each stage kind's own counts. Loads no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from skillgraft.checkpoint.layout import parameters_of, read_layout
from skillgraft.settings.base import DataPath, sites
from skillgraft.stages.costs import Costing, Needs, estimated_seconds, written
from skillgraft.stages.planned import PlannedStage
from skillgraft.support.units import duration


def estimate(stages: list[PlannedStage], base: Path) -> list[dict[str, Any]]:
    """Return one row a stage: name, kind, state, and estimates of time, memory and disk as text.

    The time is `?` where a stage reads data that is still to be written.
    """
    parameters = parameters_of(read_layout(base))
    return [_row(stage, parameters) for stage in stages]


def stage_needs(planned: PlannedStage, parameters: int) -> Needs:
    """Return what a stage takes for a base with so many parameters; data that is still to come counts nothing."""
    return planned.kind.needs(planned.settings, Costing(parameters, planned.inputs))


def _row(planned: PlannedStage, parameters: int) -> dict[str, Any]:
    flops, memory, disk = stage_needs(planned, parameters)
    data = [path for _, marker, path in sites(planned.settings, DataPath) if marker.makes is not None]
    waits = any(written(path, planned.inputs) is None for path in data)
    state = "cached" if planned.cached else "goes on" if planned.work.exists() else "to run"
    return {
        "name": planned.name,
        "kind": planned.kind.name,
        "state": state,
        "time": "?" if waits else duration(estimated_seconds(flops)),
        "memory": f"{memory / 2**30:.1f} GiB",
        "disk": f"{disk / 2**30:.1f} GiB",
        "directory": str(planned.directory),
    }


class Outlook:
    """Seconds left of a run: of each stage to come, its estimated FLOPs at the rate of finished stages of its kind."""

    def __init__(self, stages: Sequence[PlannedStage], base: Path) -> None:
        parameters = parameters_of(read_layout(base))
        self._flops = {stage.name: stage_needs(stage, parameters).flops for stage in stages}
        self._kinds = {stage.name: stage.kind.name for stage in stages}
        self._seen: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def finished(self, name: str, seconds: float) -> None:
        """Note what a stage took."""
        self._seen[self._kinds[name]].append((seconds, self._flops[name]))

    def seconds(self, names: Iterable[str]) -> tuple[float, bool]:
        """Return what these stages take in all, and whether every kind among them was measured."""
        parts = [self._seconds(name) for name in names]
        return sum(seconds for seconds, _ in parts), all(measured for _, measured in parts)

    def _seconds(self, name: str) -> tuple[float, bool]:
        seen, flops = self._seen[self._kinds[name]], self._flops[name]
        if not seen:
            return estimated_seconds(flops), False
        seconds, done = (sum(column) for column in zip(*seen, strict=True))
        return (seconds * flops / done if done else seconds / len(seen)), True
