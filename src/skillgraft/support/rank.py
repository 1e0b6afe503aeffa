"""Rank of this process among those of a distributed run. Imports no torch."""

from __future__ import annotations

import os
import sys
from typing import Any


def processes() -> int:
    """Return the size of the process group that this process is in; 1 outside of any, as between trained stages."""
    group = _group()
    return 1 if group is None else group.get_world_size()


def rank() -> int:
    """Return this process's number among those of the run, from 0.

    That of its process group; before there is one, that of the launcher (`RANK`, where `WORLD_SIZE` is more than 1).
    A launcher's variables are visible from the start of the process until the run hides them, and again while a group
    exists. While they are hidden, all but the first process only wait.
    """
    group = _group()
    if group is not None:
        return group.get_rank()
    return int(os.environ.get("RANK", "0")) if os.environ.get("WORLD_SIZE", "1") != "1" else 0


def is_first() -> bool:
    """Return whether this process is the one that writes, logs and reports."""
    return rank() == 0


def _group() -> Any:
    """Return `torch.distributed` in a process group, else None; a process that has not imported it is in none."""
    distributed = sys.modules.get("torch.distributed")
    return distributed if distributed and distributed.is_available() and distributed.is_initialized() else None
