"""A planned stage: settings with their address and inputs, and what its preflight check sees. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillgraft.stages.kind import StageKind

RECORD = "stage.json"
"""Written last into a stage's folder: the folder counts as finished when it is there."""


@dataclass(frozen=True)
class PlannedStage:
    """One stage with everything resolved.

    `inputs` maps each reference to its directory, finished or still to come; `data` holds the digests of what it reads.
    """

    name: str
    kind: StageKind
    settings: Any
    key: str
    directory: Path
    inputs: Mapping[str, Path]
    data: Mapping[str, str] = field(default_factory=dict)

    @property
    def cached(self) -> bool:
        """Whether the stage is finished and need not run."""
        return (self.directory / RECORD).is_file()

    @property
    def work(self) -> Path:
        """Where the stage works until it is finished; an interrupted run resumes from here."""
        return self.directory.with_name(self.directory.name + ".work")

    @property
    def lock(self) -> Path:
        """The file that whoever works on the stage holds a lock on."""
        return self.directory.with_name(self.directory.name + ".lock")

    def record(self) -> dict[str, Any]:
        """Return what the finished stage recorded."""
        return json.loads((self.directory / RECORD).read_text())


@dataclass(frozen=True)
class Preflight:
    """What a kind's preflight check sees: the stage, all stages by name, and how many processes train together."""

    planned: PlannedStage
    stages: Mapping[str, PlannedStage]
    processes: int = 1

    def root(self, reference: str) -> Path | None:
        """Return the checkpoint from elsewhere that `reference` descends from by training and injection, if known."""
        planned = self.planned
        while reference in self.stages:
            planned = self.stages[reference]
            if planned.kind.trained_from is None:
                return None
            reference = getattr(planned.settings, planned.kind.trained_from)
        return planned.inputs[reference]
