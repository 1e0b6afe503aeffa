"""Bytes to tensors and back, one tensor at a time; torch is imported when first needed.

Assumes a little-endian machine, as the file format does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from skillgraft.checkpoint.header import DTYPE_BYTES, TensorInfo
from skillgraft.checkpoint.safe_read import open_regular
from skillgraft.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

CHUNK_BYTES = 4 << 20
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
    "BOOL": "bool", "C64": "complex64",
}  # fmt: skip
DTYPE_CODES = {name: code for code, name in TORCH_NAMES.items()}


def torch_dtype(code: str) -> torch.dtype:
    """Return the torch dtype of a safetensors dtype code such as "BF16"."""
    import torch

    return getattr(torch, TORCH_NAMES[code])


def dtype_code(dtype: torch.dtype) -> str:
    """Return the safetensors code of a torch dtype; `CheckpointError` for one that is not stored."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_CODES:
        raise CheckpointError(f"dtype {name} can't be stored; expected one of {', '.join(DTYPE_CODES)}")
    return DTYPE_CODES[name]


def read_tensor(info: TensorInfo) -> Tensor:
    """Return the tensor that `info` describes, in its stored dtype and shape (CPU, its own memory)."""
    import torch

    dtype = torch_dtype(info.dtype)
    if info.begin == info.end:
        return torch.empty(info.shape, dtype=dtype)
    buffer = bytearray(info.end - info.begin)
    with info.file.open("rb", buffering=0) as file:
        file.seek(info.begin)
        view, done = memoryview(buffer), 0
        while done < len(buffer):
            count = file.readinto(view[done:])
            if not count:
                raise CheckpointError(
                    f"{info.file}: ended while tensor {info.name!r} was read: it changed since its header was read"
                )
            done += count
    return torch.frombuffer(buffer, dtype=dtype).reshape(info.shape)


def read_chunks(info: TensorInfo, buffer: memoryview) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in order, each piece a view of the reused `buffer`, valid until the next one."""
    left = info.end - info.begin
    with open_regular(info.file) as file:
        file.seek(info.begin)
        while left:
            piece, done = buffer[:left], 0
            while done < len(piece):
                count = file.readinto(piece[done:])
                if not count:
                    raise CheckpointError(
                        f"{info.file}: ended while tensor {info.name!r} was read: it changed since its header was read"
                    )
                done += count
            yield piece
            left -= len(piece)


def same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Return whether two tensors have the same dtype, shape and bytes; memory is two buffers, whatever their size."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    chunks = (read_chunks(info, memoryview(bytearray(CHUNK_BYTES))) for info in (one, other))
    return all(left == right for left, right in zip(*chunks, strict=True))


def count_not_finite(info: TensorInfo, buffer: memoryview) -> tuple[int, int]:
    """Return how many elements of a float tensor are NaN and how many are infinite.

    `buffer` (a multiple of 8 bytes) is what it reads into; memory doesn't grow with the tensor.
    """
    import torch

    nan = infinite = 0
    for chunk in read_chunks(info, buffer):
        values = torch.frombuffer(chunk, dtype=torch_dtype(info.dtype))
        if not torch.isfinite(values).all():
            nan += int(torch.isnan(values).sum())
            infinite += int(torch.isinf(values).sum())
    return nan, infinite


_NUMPY_BITS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
}  # fmt: skip


def numpy_dtype(code: str) -> np.dtype:
    """Return the NumPy dtype that holds the elements of a safetensors dtype; bf16 as its bits in uint16."""
    import numpy as np

    return np.dtype(_NUMPY_BITS[code])


def read_array_part(info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """Return the flat elements from `start` to `stop` of a tensor as `read_array` does."""
    width = DTYPE_BYTES[info.dtype]
    begin, end = info.begin + start * width, info.begin + stop * width
    return read_array(replace(info, shape=(stop - start,), begin=begin, end=end))


def read_array(info: TensorInfo) -> np.ndarray:
    """Return a whole tensor as a NumPy array, bf16 as its bits in uint16; loads no torch."""
    import numpy as np

    buffer = bytearray(info.end - info.begin)
    done = 0
    for piece in read_chunks(info, memoryview(bytearray(min(CHUNK_BYTES, max(1, len(buffer)))))):
        buffer[done : done + len(piece)] = piece
        done += len(piece)
    return np.frombuffer(buffer, numpy_dtype(info.dtype)).reshape(info.shape)


_NUMPY_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def read_elements(info: TensorInfo, positions: Sequence[int]) -> list[float]:
    """Return the elements at flat `positions` of a float tensor, without reading the rest of it."""
    import numpy as np  # not torch: a merge that reads a skill's sketch needs nothing else of it

    width = DTYPE_BYTES[info.dtype]
    buffer = bytearray()
    with info.file.open("rb", buffering=0) as file:
        for position in positions:
            buffer += os.pread(file.fileno(), width, info.begin + position * width)
    if len(buffer) != width * len(positions):
        raise CheckpointError(f"{info.file}: ended while tensor {info.name!r} was read: it changed")
    if info.dtype == "BF16":
        return (np.frombuffer(buffer, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(float).tolist()
    return np.frombuffer(buffer, _NUMPY_FLOATS[info.dtype]).astype(float).tolist()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in row-major order, without a copy where it is contiguous on the CPU."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
