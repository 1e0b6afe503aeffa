"""Writing safetensors files tensor by tensor, so that memory holds one tensor whatever the model's size."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from skillgraft.checkpoint.header import TensorSpec, encode_header
from skillgraft.checkpoint.json_file import write_json
from skillgraft.checkpoint.layout import INDEX_FILE, Layout
from skillgraft.checkpoint.tensor_io import dtype_code, tensor_bytes
from skillgraft.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def planned_dtypes(target: Layout, dtype: str | None) -> dict[str, str]:
    """Return the stored dtype of every tensor of `target`: its own, or `dtype` (a code, "BF16") for the float ones."""
    return {name: dtype if dtype and info.is_float else info.dtype for name, info in target.tensors.items()}


def planned_bytes(target: Layout, dtypes: Mapping[str, str]) -> int:
    """Return the bytes of tensor data that `write_checkpoint` with these dtypes will write."""
    return sum(TensorSpec(name, dtypes[name], info.shape).nbytes for name, info in target.tensors.items())


def write_checkpoint(
    directory: Path,
    target: Layout,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtypes: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the weights of a checkpoint that has the names, shapes, shards and index of `target`.

    Headers are written first, from the plan; then each tensor, in any order, goes to its place. `dtypes` gives the
    safetensors code per name (default: `target`'s own); `metadata` is added to `{"format": "pt"}` in each header.

    Raises `CheckpointError` for a tensor that is not planned, comes twice, has another dtype or shape, or is missing
    at the end.
    """
    dtypes = dtypes or planned_dtypes(target, None)
    specs = {name: TensorSpec(name, dtypes[name], info.shape) for name, info in target.tensors.items()}
    handles: dict[Path, int] = {}
    places: dict[str, tuple[int, int]] = {}
    try:
        for file in target.files:
            names = [name for name, info in target.tensors.items() if info.file == file]
            header = encode_header((specs[name] for name in names), {"format": "pt", **(metadata or {})})
            handles[file] = os.open(directory / file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            position = len(header)
            for name in names:
                places[name] = (handles[file], position)
                position += specs[name].nbytes
            os.ftruncate(handles[file], position)
            write_at(handles[file], memoryview(header), 0)
        for name, tensor in tensors:
            if name not in places:
                raise CheckpointError(f"tensor {name!r} was not planned or was written twice; expected each name once")
            _check_spec(specs[name], tensor)
            handle, position = places.pop(name)
            write_at(handle, tensor_bytes(tensor), position)
    finally:
        for handle in handles.values():
            os.close(handle)
    if places:
        raise CheckpointError(f"{len(places)} planned tensors were never written, first {next(iter(places))!r}")
    if target.index is not None:
        _write_index(directory, target, sum(spec.nbytes for spec in specs.values()))


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
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def __enter__(self) -> SafetensorsAppender:
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a planned tensor; `CheckpointError` when name, dtype or shape is not as planned."""
        if name not in self._planned:
            raise CheckpointError(f"tensor {name!r} was not planned or was written twice; expected each name once")
        spec = self._planned.pop(name)
        _check_spec(spec, tensor)
        write_at(self._handle, tensor_bytes(tensor), self._position)
        self._position += spec.nbytes
        self._written.append(spec)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
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


def _write_index(directory: Path, target: Layout, total_size: int) -> None:
    old = (target.index or {}).get("metadata")
    metadata = {**(old if isinstance(old, dict) else {}), "total_size": total_size}
    weight_map = {name: info.file.name for name, info in target.tensors.items()}
    write_json(directory / INDEX_FILE, {"metadata": metadata, "weight_map": weight_map})
