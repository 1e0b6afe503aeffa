"""BLAKE3 fingerprints of files and checkpoints, computed once per file version.

The cache has one small file per hashed file, replaced atomically: concurrent writers can't damage it or lose each
other's entries, and it never grows past the number of files. A hash is reused while device, inode, size and both
times of the file stay the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path

from blake3 import blake3

from skillgraft.checkpoint.layout import require_directory, weight_files
from skillgraft.checkpoint.safe_read import open_regular
from skillgraft.support.atomic import atomic_write_json
from skillgraft.support.cache import cache_home

PREFIX = "blake3:"
BUFFER_BYTES = 4 << 20  # as fast as mapping the file: it stays in the processor's cache between reading and hashing
# A file that changed within one tick of the file system's clock keeps its times: such a fresh one isn't cached.
SETTLED_SECONDS = 2.0

_SHA256 = re.compile(r"[0-9a-f]{64}")


def fingerprint_checkpoint(directory: str | os.PathLike[str]) -> str:
    """Return `blake3:<hex>` over the sorted (name, fingerprint) pairs of a checkpoint's weight files.

    Config and tokenizer don't count; the same weights in other shards give another fingerprint. Raises
    `MissingPathError` and `CheckpointError` as `read_layout` does for absent or refused weights.
    """
    files, _ = weight_files(require_directory(directory))
    return fingerprint_files(files)


def fingerprint_files(files: Iterable[Path], finished: Callable[[Path], None] | None = None) -> str:
    """Return the fingerprint of a checkpoint with these weight files; `finished` is called with each hashed file."""
    digest = blake3()
    for file in sorted(files):
        digest.update(json.dumps([file.name, fingerprint_file(file)]).encode())
        if finished is not None:
            finished(file)
    return PREFIX + digest.hexdigest()


def fingerprint_file(path: str | os.PathLike[str]) -> str:
    """Return `blake3:<hex>` of a file's bytes, from the cache where the file has not changed since.

    Raises `MissingPathError` when there is no such file and `CheckpointError` for anything but a readable file.
    """
    with open_regular(Path(path)) as file:
        before = os.fstat(file.fileno())
        entry = cache_home() / "fingerprints" / f"{before.st_dev:x}-{before.st_ino:x}.json"
        known = _read_entry(entry, before)
        if known is not None:
            return known
        fingerprint = PREFIX + _hash(file)
        after = os.fstat(file.fileno())
    newest = max(after.st_mtime, after.st_ctime)
    if _version(before) == _version(after) and time.time() - newest > SETTLED_SECONDS:
        _write_entry(entry, after, fingerprint)
    return fingerprint


def recorded_sha256(files: Iterable[Path]) -> dict[str, str] | None:
    """Return by file name the SHA-256 that a model hub recorded of files in its cache; None where it recorded none.

    There a large file is a link to `blobs/<SHA-256>`; nothing is hashed here.
    """
    sha256_by_name = {}
    for file in files:
        if file.is_symlink():
            blob = Path(os.readlink(file))
            if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
                sha256_by_name[file.name] = blob.name
    return sha256_by_name or None


def _hash(file: FileIO) -> str:
    """Return the BLAKE3 of an open file in one reused buffer: pages of a mapped file would count as memory in use."""
    digest = blake3(max_threads=blake3.AUTO)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    while count := file.readinto(buffer):
        digest.update(buffer[:count])
    return digest.hexdigest()


def _version(status: os.stat_result) -> list[int]:
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read_entry(entry: Path, status: os.stat_result) -> str | None:
    try:
        stored = json.loads(entry.read_text(encoding="utf-8"))
        matches = stored["version"] == _version(status) and stored["fingerprint"].startswith(PREFIX)
        return stored["fingerprint"] if matches else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # absent or damaged: the hash is computed again, which costs only time


def _write_entry(entry: Path, status: os.stat_result, fingerprint: str) -> None:
    with contextlib.suppress(OSError):  # a cache that can't be written must not stop the work
        entry.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(entry, {"version": _version(status), "fingerprint": fingerprint})
