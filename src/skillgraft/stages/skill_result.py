"""Result of a stage that makes a skill: its form, size and norm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skillgraft.stages.context import StageResult


def skill_result(skill: Any, directory: Path) -> StageResult:
    """Return what is recorded of a skill: storage form, bytes on disk, L2 norm over all tensors, their number."""
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    norm = sum(skill.norm(name) ** 2 for name in skill.names) ** 0.5
    return StageResult({"form": skill.form, "size_bytes": size, "norm": norm, "tensors": len(skill.names)})
