"""Atomic writes: a file or folder appears whole or not at all, and replaces what was there in one rename."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write a file or folder to; it becomes `path` where the block ends without error.

    The temporary name holds the process's number, so that two processes do not write one file; what a process that was
    killed left under it is removed by `path`'s next writer of the same number, or stays as a hidden `.part`.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(part)
    try:
        yield part
        os.replace(part, path)
    except BaseException:
        _remove(part)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole, as UTF-8."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole."""
    with replacing(path) as part:
        part.write_bytes(content)


def write_json_text(path: Path, value: Any) -> None:
    """Write JSON data whole, on one line."""
    write_text(path, json.dumps(value))
