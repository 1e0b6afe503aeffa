"""File locks: one process at a time, until the file is closed or the process ends, however it ends."""

from __future__ import annotations

import fcntl
from typing import IO, Any


def try_lock(file: IO[Any]) -> bool:
    """Take the lock of an open file for this process alone; return whether it was free."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(file: IO[Any]) -> None:
    """Take the lock of an open file, waiting for whoever holds it."""
    fcntl.flock(file, fcntl.LOCK_EX)
