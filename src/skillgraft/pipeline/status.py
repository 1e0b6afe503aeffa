"""Status of a runs directory: finished stages, and interrupted ones with their progress. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skillgraft.data.synthesis.generation import RENDERINGS
from skillgraft.errors import MissingPathError
from skillgraft.stages.planned import RECORD
from skillgraft.support.units import duration


def list_stages(runs: Path) -> list[dict[str, Any]]:
    """Return one row a stage folder under `runs`: name, kind, state (finished, or interrupted at step n), time.

    Raises:
        MissingPathError: there is no such directory.
    """
    if not runs.is_dir():
        raise MissingPathError(f"{runs} is not a directory; expected the --runs directory of `skillgraft run`")
    return [_row(folder) for folder in sorted((runs / "stages").glob("*-*")) if folder.is_dir()]


def _row(folder: Path) -> dict[str, Any]:
    kind = folder.name.partition("-")[0]
    record = folder / RECORD
    if record.is_file():
        facts = json.loads(record.read_text())
        return {
            "name": facts["name"],
            "kind": kind,
            "state": "finished",
            "time": duration(facts["seconds"]),
            "directory": str(folder),
        }
    steps = [int(p.name.rpartition("-")[2]) for p in folder.rglob("checkpoint-*")]
    reached = sum(len(log.read_text().splitlines()) for log in folder.rglob("log.jsonl"))
    state = f"interrupted, resumes from step {max(steps)}" if steps else "interrupted"
    if (written := folder / RENDERINGS).is_file():
        state += f" ({len(written.read_bytes().splitlines())} renderings kept)"
    if reached:
        state += f" ({reached} steps logged)"
    return {"name": "", "kind": kind, "state": state, "time": "", "directory": str(folder)}
