"""Atomic file writes: a temporary sibling is written whole and renamed, so that nobody ever reads half a file."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path


def json_text(value: object) -> str:
    """Return `value` as indented JSON with a final newline; NaN and infinity are refused with `ValueError`."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def atomic_write_json(path: Path, value: object, *, durable: bool = False) -> None:
    """Write `value` as `json_text` into the file `path`, as `atomic_write_bytes` does."""
    atomic_write_text(path, json_text(value), durable=durable)


def atomic_write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write `text` as UTF-8, its line ends as they are, into the file `path`, as `atomic_write_bytes` does."""
    atomic_write_bytes(path, text.encode("utf-8"), durable=durable)


def atomic_write_bytes(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Write `data` into the file `path` in one rename, in place of what was there; `OSError` where that fails.

    After an exception the old file is unchanged and nothing else is left. After a power failure the file is the old one
    or the new one; with `durable` it is the new one once this has returned.
    """
    replace_together({path: data}, durable=durable)


def replace_together(contents: Mapping[Path, bytes], *, durable: bool = False) -> None:
    """Write each content beside the file that it replaces, and only when all are written rename them into place."""
    own = f".partial-{os.getpid()}-{threading.get_ident()}"
    partials = {path: path.parent / f"{own}-{number}" for number, path in enumerate(contents)}
    try:
        for path, partial in partials.items():
            with partial.open("wb") as file:
                file.write(contents[path])
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
        for path, partial in partials.items():
            os.replace(partial, path)
    except BaseException:
        for partial in partials.values():
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        raise
    if durable:
        for folder in {path.parent for path in contents}:
            synchronise(folder)


def synchronise(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
