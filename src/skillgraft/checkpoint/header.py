"""The safetensors header: where each tensor of a file lies, read and written without touching tensor data.

A file is 8 bytes (header length N, little endian), N bytes of JSON and the data; offsets in the JSON count from the
start of the data. Everything is checked here once, so that later reads can trust a `TensorInfo`.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from skillgraft.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
LENGTH_BYTES = 8

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1,
    "BOOL": 1, "C64": 8,
}  # fmt: skip
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
QUANTISED_PREFIXES = ("F8_", "F6_", "F4")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file; `begin` and `end` are byte offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether arithmetic on it makes sense (F64, F32, F16, BF16)."""
        return self.dtype in FLOAT_DTYPES


class Header(NamedTuple):
    """The checked header of one file: its string metadata and its tensors in the order of their bytes."""

    metadata: dict[str, str]
    tensors: tuple[TensorInfo, ...]


class TensorSpec(NamedTuple):
    """What a header says of a tensor that is to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its data."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def read_header(path: Path) -> Header:
    """Return the checked header of the safetensors file `path`.

    Raises `CheckpointError` for a file that is truncated or longer than its header says, for a header that is too
    large or not JSON, for offsets that overlap, leave gaps or do not fit dtype and shape, for a name that occurs
    twice and for 8-bit and narrower float storage.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(LENGTH_BYTES)
        length = int.from_bytes(prefix, "little")
        if len(prefix) == LENGTH_BYTES and length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path}: the header claims {length} bytes, more than the {MAX_HEADER_BYTES} that safetensors allows; "
                "the file is damaged or no safetensors file"
            )
        if len(prefix) < LENGTH_BYTES or size < LENGTH_BYTES + length:
            raise CheckpointError(
                f"{path}: truncated within its header, the file has {size} bytes; download or write it again"
            )
        text = file.read(length)
    metadata, entries = _parse(path, text)
    data_begin = LENGTH_BYTES + length
    tensors = sorted(
        (_tensor_info(path, name, entry, data_begin) for name, entry in entries.items()),
        key=lambda info: (info.begin, info.end),
    )
    _check_coverage(path, tensors, data_begin, size)
    return Header(metadata, tuple(tensors))


def _parse(path: Path, text: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise CheckpointError(f"{path}: the header names {twice!r} twice; the file is damaged: write it again")
        return dict(pairs)

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=refuse_duplicates)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the header is not JSON ({error}); the file is damaged or no safetensors file"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is a JSON {type(header).__name__}, expected an object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ in the header is no map from strings to strings")
    return metadata, header


def _tensor_info(path: Path, name: str, entry: Any, data_begin: int) -> TensorInfo:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"{where}: got {entry!r}, expected dtype, shape and data_offsets; the header is damaged")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if isinstance(dtype, str) and dtype.startswith(QUANTISED_PREFIXES):
        raise CheckpointError(
            f"{where} is stored as {dtype}; arithmetic on quantised storage is refused: "
            "use the checkpoint's bfloat16, float16 or float32 version"
        )
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{where}: dtype {dtype!r} is unknown, expected one of {', '.join(DTYPE_BYTES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: shape {shape!r} or data_offsets {offsets!r} is no list of sizes")
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise CheckpointError(
            f"{where}: offsets {offsets} span {offsets[1] - offsets[0]} bytes, "
            f"but {dtype} of shape {shape} takes {expected}; the header is damaged"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_begin + offsets[0], data_begin + offsets[1])


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_coverage(path: Path, tensors: list[TensorInfo], data_begin: int, size: int) -> None:
    """Refuse anything but tensors that follow each other without gap to the end of the file, as the library does."""
    previous, position = "the header", data_begin
    for info in tensors:
        if info.begin < position:
            raise CheckpointError(
                f"{path}: tensor {info.name!r} begins at byte {info.begin} and overlaps {previous}, "
                f"which ends at byte {position}; the header is damaged"
            )
        if info.begin > position:
            raise CheckpointError(
                f"{path}: {info.begin - position} bytes between {previous} and tensor {info.name!r} belong to no "
                "tensor; the header is damaged"
            )
        previous, position = f"tensor {info.name!r}", info.end
    if position > size:
        last = next(info for info in tensors if info.end > size)
        raise CheckpointError(
            f"{path}: truncated or offsets out of range: the header says {position} bytes, the file has {size} "
            f"(tensor {last.name!r} ends at byte {last.end}); download or write it again"
        )
    if position < size:
        raise CheckpointError(
            f"{path}: the header says {position} bytes, the file has {size}; it is damaged: download or write it again"
        )


def encode_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str], reserve_bytes: int = 0) -> bytes:
    """Return the length prefix and header of a file that holds `specs` in this order.

    The header is padded with spaces to a multiple of 8 bytes, as the library pads it, and to `reserve_bytes` in all.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for spec in specs:
        end = position + spec.nbytes
        header[spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    length = max(-(-len(text) // 8) * 8, reserve_bytes - LENGTH_BYTES)
    return length.to_bytes(LENGTH_BYTES, "little") + text.ljust(length)
