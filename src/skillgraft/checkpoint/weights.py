"""Writing safetensors files piece by piece, so that memory holds little whatever the model's size."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING

from skillgraft.checkpoint.header import TensorSpec, encode_header
from skillgraft.checkpoint.layout import INDEX_FILE, Layout
from skillgraft.checkpoint.tensor_io import dtype_code, tensor_bytes
from skillgraft.errors import CheckpointError
from skillgraft.support.atomic import atomic_write_json

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


def planned_dtypes(target: Layout, dtype: str | None) -> dict[str, str]:
    """Return the stored dtype of every tensor of `target`: its own, or `dtype` (a code, "BF16") for the float ones."""
    return {name: dtype if dtype and info.is_float else info.dtype for name, info in target.tensors.items()}


class ShardFile:
    """A preallocated safetensors file whose tensors are written in place, in pieces and in any order."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> None:
        header = encode_header(specs, {"format": "pt", **metadata})
        self._places: dict[str, int] = {}
        position = len(header)
        for spec in specs:
            self._places[spec.name] = position
            position += spec.nbytes
        self._left = position - len(header)
        self._lock = Lock()
        path.unlink(missing_ok=True)  # what a killed process left of it
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        _allocate(self._handle, position)
        write_at(self._handle, memoryview(header), 0)

    def write(self, name: str, begin: int, data: memoryview | np.ndarray) -> None:
        """Write bytes over the tensor `name` from its byte `begin` on; threads may do so at once."""
        view = data if isinstance(data, memoryview) else data.data
        with self._lock:  # a file takes one write at a time, and the kernel's own lock spins
            write_at(self._handle, view, self._places[name] + begin)
            self._left -= len(view)

    def check_complete(self) -> None:
        """Raise `CheckpointError` unless as many bytes were written as planned."""
        if self._left:
            raise CheckpointError(f"{self._left} planned bytes of tensors were never written or written twice")

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def _allocate(handle: int, size: int) -> None:
    """Reserve the room on the disk, so that a disk that is too small is found before the work."""
    try:
        os.posix_fallocate(handle, 0, size)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        os.ftruncate(handle, size)


class SafetensorsAppender:
    """A safetensors file that gets its tensors one after the other; not every planned one has to come.

    The header's room is reserved for all of `planned`, and the header of those that came is written on leaving the
    `with` block: so a tensor that turns out to be all zero costs neither space nor a second pass.
    """

    def __init__(self, path: Path, planned: Iterable[TensorSpec], metadata: Mapping[str, str]) -> None:
        self._planned = {spec.name: spec for spec in planned}
        self._metadata = dict(metadata)
        self._written: list[TensorSpec] = []
        self._reserved = len(encode_header(self._planned.values(), self._metadata))
        self._position = self._reserved
        self._lock = Lock()
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def __enter__(self) -> SafetensorsAppender:
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a planned tensor; `CheckpointError` when name, dtype or shape is not as planned."""
        if name not in self._planned:
            raise CheckpointError(f"tensor {name!r} was not planned or was written twice; expected each name once")
        _check_spec(self._planned[name], tensor)
        self.put(0, tensor_bytes(tensor))
        self.keep(name)

    def put(self, begin: int, data: memoryview | np.ndarray) -> None:
        """Write bytes from byte `begin` on of the tensor that comes next; threads may do so at once."""
        with self._lock:
            write_at(self._handle, data if isinstance(data, memoryview) else data.data, self._position + begin)

    def keep(self, name: str) -> None:
        """Say that what was put is the planned tensor `name`; without it, the next one takes its place."""
        spec = self._planned.pop(name)
        self._position += spec.nbytes
        self._written.append(spec)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                os.ftruncate(self._handle, self._position)
                write_at(self._handle, memoryview(encode_header(self._written, self._metadata, self._reserved)), 0)
        finally:
            os.close(self._handle)


def write_at(handle: int, data: memoryview, position: int) -> None:
    """Write all of `data` at byte `position` of an open file."""
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done:], position + done)


def _check_spec(spec: TensorSpec, tensor: Tensor) -> None:
    got = (dtype_code(tensor.dtype), tuple(tensor.shape))
    if got != (spec.dtype, spec.shape):
        raise CheckpointError(
            f"tensor {spec.name!r}: got {got[0]} of shape {list(got[1])}, planned {spec.dtype} of {list(spec.shape)}"
        )


def write_index(directory: Path, target: Layout, total_size: int) -> None:
    """Write the index of a checkpoint that has the shards of `target`; `total_size` are the bytes of its tensors."""
    old = (target.index or {}).get("metadata")
    metadata = {**(old if isinstance(old, dict) else {}), "total_size": total_size}
    weight_map = {name: info.file.name for name, info in target.tensors.items()}
    atomic_write_json(directory / INDEX_FILE, {"metadata": metadata, "weight_map": weight_map})
