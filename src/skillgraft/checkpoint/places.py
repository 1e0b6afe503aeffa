"""Where a checkpoint was last seen on this machine, by fingerprint: a note in the cache, never in what is shared."""

from __future__ import annotations

import os
import re
from pathlib import Path

from skillgraft.checkpoint.cache import cache_home
from skillgraft.checkpoint.json_file import read_json_object, write_json
from skillgraft.errors import SkillgraftError

_FINGERPRINT = re.compile(r"blake3:[0-9a-f]{64}")


def note_place(fingerprint: str, directory: str | os.PathLike[str]) -> None:
    """Note that the checkpoint `fingerprint` lies in `directory`; a cache that can't be written stops nothing."""
    file = _file(fingerprint)
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(part, {"path": os.path.realpath(directory)})
        os.replace(part, file)
    except OSError:
        return


def noted_place(fingerprint: str) -> Path | None:
    """Return the directory where `fingerprint` was last seen, which may be gone or hold something else by now."""
    if not _FINGERPRINT.fullmatch(fingerprint):  # it may stem from a file that somebody sent
        return None
    try:
        path = read_json_object(_file(fingerprint)).get("path")
    except SkillgraftError:
        return None
    return Path(path) if isinstance(path, str) else None


def _file(fingerprint: str) -> Path:
    return cache_home() / "places" / f"{fingerprint.rpartition(':')[2]}.json"
