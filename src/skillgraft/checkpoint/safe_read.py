"""Reading files that others made, never trusting them: regular files only, JSON within bounds, errors with the path.

Opening never blocks. JSON costs no more memory than what is kept of it, names no key twice, and can be shown in a
message whatever its size.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from skillgraft.errors import CheckpointError, MissingPathError, SkillgraftError

Value = TypeVar("Value")

MAX_JSON_BYTES = 100_000_000  # three times the largest tokenizer.json in use; parsing takes up to 20 times as much
MAX_DEPTH = 64
PIECE_BYTES = 1 << 20

_KINDS = (
    (stat.S_ISDIR, "directory"),
    (stat.S_ISFIFO, "FIFO"),
    (stat.S_ISSOCK, "socket"),
    (stat.S_ISCHR, "device"),
    (stat.S_ISBLK, "device"),
)
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = json.JSONDecoder()
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = 200
_REPR.maxlist = 8


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
        raise CheckpointError(f"{path} is a {kind}, expected a regular file; replace it by the file that belongs there")


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES, *, strict: bool = False) -> dict[str, Any]:
    """Return the JSON object in `path`; with `strict`, one that can be written as JSON again.

    Raises `MissingPathError` when there is no such file and `CheckpointError` when it can't be read, has more than
    `max_bytes`, isn't a JSON object, or is `strict` and holds what `refuse_odd_values` refuses.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise CheckpointError(
                f"{path}: has {size} bytes, expected at most {max_bytes}; the file is damaged: download it again"
            )
        try:
            value = json.loads(read_text(file, size))
            if strict:
                refuse_odd_values(value)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: not readable as JSON ({error}); the file is damaged: download or write it again"
            ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: got a JSON {type(value).__name__}, expected an object")
    return value


def shown(value: object) -> str:
    """Return the representation of a JSON value, cut where it is long or deep."""
    return _REPR.repr(value)


def read_members(
    text: str, position: int, read_value: Callable[[str, int], tuple[Value, int]]
) -> tuple[dict[str, Value], int]:
    """Return the members of the object that begins at `position`, and the position after it and the space behind it.

    `read_value` gets a member's name and where its value begins, and returns the value and where it ends. Raises
    `ValueError` for anything but an object and for a name that occurs twice.
    """
    members: dict[str, Value] = {}
    position = _after(text, position, "{")
    if text.startswith("}", position):
        return members, _after(text, position, "}")
    while True:
        if not text.startswith('"', position):
            raise ValueError(f"expected a name in quotes at character {position}")
        name, position = _STRING.raw_decode(text, position)
        if name in members:
            raise ValueError(_twice(name))
        members[name], position = read_value(name, _after(text, _skip(text, position), ":"))
        position = _skip(text, position)
        if text.startswith("}", position):
            return members, _after(text, position, "}")
        position = _after(text, position, ",")


def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict (an `object_pairs_hook`); `ValueError` for a name that occurs twice."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(_twice(name))
        members[name] = value
    return members


def refuse_odd_values(value: object) -> None:
    """Raise `ValueError`, naming the place, for what parsed as JSON and cannot be written or shown as JSON.

    These are NaN and infinity (also as 1e999), and lists and objects that are nested deeper than `MAX_DEPTH`.
    """
    waiting: list[tuple[str, object, int]] = [("", value, 0)]
    while waiting:
        where, each, depth = waiting.pop()
        if isinstance(each, float) and not math.isfinite(each):
            raise ValueError(f"{shown(where)} is {each}, expected a finite number")
        if isinstance(each, dict | list):
            if depth == MAX_DEPTH:
                raise ValueError(f"{shown(where)} is nested deeper than {MAX_DEPTH} levels")
            members = each.items() if isinstance(each, dict) else enumerate(each)
            waiting += [(f"{where[:200]}.{name}" if where else str(name), item, depth + 1) for name, item in members]


def _twice(name: str) -> str:
    return f"it names {shown(name)} twice"


def _after(text: str, position: int, mark: str) -> int:
    if not text.startswith(mark, position):
        raise ValueError(f"expected {mark!r} at character {position}")
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    spaces = _SPACE.match(text, position)
    return spaces.end() if spaces else position
