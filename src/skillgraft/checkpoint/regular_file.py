"""Reading files that others made: regular files only, never blocking, every failure one error that names the path."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from skillgraft.errors import CheckpointError, MissingPathError, SkillgraftError

PIECE_BYTES = 1 << 20

_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)


@contextmanager
def open_regular(path: Path) -> Iterator[FileIO]:
    """Open a regular file, or a symbolic link to one, unbuffered for reading.

    Links are followed, as the snapshots of the hub's cache need. Raises `MissingPathError` when there is no such file
    and `CheckpointError` for anything else in its place and for what may not or cannot be read, here or in the block.
    """
    try:
        _refuse_other_kinds(path, os.stat(path))
        # Opening a FIFO that took the file's place since would wait for a writer without O_NONBLOCK.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            _refuse_other_kinds(path, os.fstat(descriptor))
            yield file
    except SkillgraftError:
        raise
    except OSError as error:
        raise read_error(path, error) from error


def require_regular(path: Path) -> None:
    """Raise as `open_regular` does unless `path` is a regular file or a link to one."""
    try:
        _refuse_other_kinds(path, os.stat(path))
    except OSError as error:
        raise read_error(path, error) from error


def read_text(file: FileIO, length: int) -> str:
    """Return the next `length` bytes of `file`, or what is left of it, as UTF-8 text.

    Raises `ValueError` for other bytes and for NUL, which no JSON text holds: at the first one, so that a sparse file
    of any size costs one piece of memory.
    """
    pieces: list[bytes] = []
    while length > 0 and (piece := file.read(min(length, PIECE_BYTES))):
        if b"\0" in piece:
            raise ValueError("it holds a NUL byte")
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces).decode("utf-8")


def read_error(path: Path, error: OSError) -> SkillgraftError:
    """Return the error to raise when the system refused to open or read `path`."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if os.path.islink(path):
            return MissingPathError(
                f"{path}: no such file: a symbolic link to {os.readlink(path)}, which does not exist; download it again"
            )
        return MissingPathError(f"{path}: no such file")
    if error.errno == errno.ELOOP:
        return CheckpointError(f"{path}: a symbolic link that leads back to itself; put the file in its place")
    if isinstance(error, PermissionError):
        return CheckpointError(
            f"{path}: may not be read ({error.strerror}); expected a file that you may read: check owner and mode"
        )
    return CheckpointError(
        f"{path}: could not be read ({error.strerror or error}); check the disk, or download the file again"
    )


def _refuse_other_kinds(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "special file")
        raise CheckpointError(f"{path} is no regular file but a {kind}; put the file that belongs there in its place")
