"""Reusable buffers, one set per thread, and files shared by all: a tensor of any size needs a few tiles of memory."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from skillgraft.checkpoint.header import TensorInfo
from skillgraft.checkpoint.safe_read import read_error
from skillgraft.errors import CheckpointError

CACHE_BYTES = 1 << 27


class Buffers:
    """The buffers of one thread, each known by a key; one that is too small is replaced by a larger one."""

    def __init__(self) -> None:
        self._buffers: dict[Hashable, np.ndarray] = {}
        self._last: tuple[Hashable, Any] = (None, None)

    def last(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` gave for `key`, made anew when another key was asked for in between."""
        if self._last[0] != key:
            self._last = (key, make())
        return self._last[1]

    def empty(self, key: Hashable, shape: tuple[int, ...], dtype: type = np.float64) -> np.ndarray:
        """Return an uninitialised contiguous array in the buffer `key`."""
        size = 1
        for extent in shape:
            size *= extent
        buffer = self._buffers.get((key, dtype))
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[key, dtype] = np.empty(size, dtype=dtype)
        return buffer[:size].reshape(shape)


FileVersion = tuple[int, int, int, int]


def file_version(status: os.stat_result) -> FileVersion:
    """Return what tells a file from one that took its place: device, inode, size and time of the last change."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class Files:
    """Files opened once for reading, shared by all threads (`pread` moves no position).

    `cached` holds whole arrays that many tiles need (low-rank factors), the most recent ones. `versions` are those of
    the files when they were planned with: one that was replaced or changed since is refused.
    """

    def __init__(self, versions: Mapping[Path, FileVersion] | None = None) -> None:
        self._versions = versions or {}
        self._handles: dict[Path, int] = {}
        self._cache: OrderedDict[Hashable, tuple[np.ndarray, ...]] = OrderedDict()
        self._lock = RLock()  # what `cached` makes reads files

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def cached(self, key: Hashable, make: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Return what `make` gave for `key`, made anew when it is not among the last few."""
        with self._lock:
            if key not in self._cache:
                self._cache[key] = make()
                while (
                    len(self._cache) > 2
                    and sum(a.nbytes for arrays in self._cache.values() for a in arrays) > CACHE_BYTES
                ):
                    self._cache.popitem(last=False)
            self._cache.move_to_end(key)
            return self._cache[key]

    def read(self, info: TensorInfo, begin: int, buffer: np.ndarray) -> None:
        """Fill `buffer` (uint8) from byte `begin` of the tensor's data; `CheckpointError` when that cannot be read."""
        handle = self._handles.get(info.file)
        if handle is None:
            handle = self._open(info.file)
        view = buffer.data
        done = 0
        while done < len(view):
            try:
                count = os.preadv(handle, [view[done:] if done else view], info.begin + begin + done)
            except OSError as error:
                raise read_error(info.file, error) from error
            if not count:
                raise CheckpointError(
                    f"{info.file}: ended while tensor {info.name!r} was read: it changed since its header was read"
                )
            done += count

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` when a file that was read has changed since it was planned with."""
        for path, handle in self._handles.items():
            self._check(path, os.fstat(handle))

    def _check(self, path: Path, status: os.stat_result) -> None:
        if path in self._versions and file_version(status) != self._versions[path]:
            raise CheckpointError(f"{path}: replaced or changed since its header was read; run the same command again")

    def _open(self, path: Path) -> int:
        with self._lock:
            if path not in self._handles:
                try:
                    self._handles[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise read_error(path, error) from error
                self._check(path, os.fstat(self._handles[path]))
            return self._handles[path]
