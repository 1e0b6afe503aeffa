"""File locks by `flock`: one holder at a time; the system releases them when the process ends, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def exclusive_lock(path: Path, busy: Exception | None = None, *, remove: bool = False) -> Iterator[None]:
    """Hold the lock of the file `path`, which is created where it does not exist.

    Where another process or open file holds it, `busy` is raised; without `busy` the call waits. With `remove` the
    file is deleted before the lock is released. `OSError` when the file cannot be opened for writing.
    """
    while True:
        with path.open("a") as file:
            lock_file(file, busy)
            if not _is_at(file, path):  # its last holder has removed it: others would open and lock a new one
                continue
            try:
                yield
            finally:
                if remove:
                    path.unlink(missing_ok=True)
            return


def lock_file(file: IO[str], busy: Exception | None = None) -> None:
    """Lock an open file until it is closed; `busy` where another holds its lock, without `busy` wait for it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX if busy is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        assert busy is not None
        raise busy from error


def _is_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
