"""The cache folder, and in it the notes on where each checkpoint was last seen on this machine, by fingerprint."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

from skillgraft.support.atomic import atomic_write_json

_FINGERPRINT = re.compile(r"blake3:[0-9a-f]{64}")


def cache_home() -> Path:
    """Return the cache directory: `$SKILLGRAFT_CACHE`, else `~/.cache/skillgraft`. It may not exist yet."""
    configured = os.environ.get("SKILLGRAFT_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "skillgraft"


def note_place(fingerprint: str, directory: str | os.PathLike[str]) -> None:
    """Note that the checkpoint `fingerprint` lies in `directory`; a cache that can't be written is not an error."""
    file = _place_file(fingerprint)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(file, {"path": os.path.realpath(directory)})


def noted_place(fingerprint: str) -> Path | None:
    """Return the directory where `fingerprint` was last seen, which may be gone or hold something else by now."""
    if not _FINGERPRINT.fullmatch(fingerprint):  # it may stem from a file that somebody sent
        return None
    try:
        path = json.loads(_place_file(fingerprint).read_text(encoding="utf-8"))["path"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return Path(path) if isinstance(path, str) else None


def _place_file(fingerprint: str) -> Path:
    return cache_home() / "places" / f"{fingerprint.rpartition(':')[2]}.json"
