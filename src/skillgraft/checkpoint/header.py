"""The safetensors header: the place of each tensor in a file, read and written without touching tensor data.

A file is 8 bytes (header length N, little endian), N bytes of JSON and the data; offsets in the JSON count from the
start of the data. Everything is checked here once, so that later reads can trust a `TensorInfo`.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from skillgraft.checkpoint.safe_read import open_regular, read_members, read_text, refuse_repeats, shown
from skillgraft.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_SIZE = 2**63 - 1  # of a dimension, of an offset and of the product of a shape
MAX_NAME_CHARACTERS = 4096
LENGTH_BYTES = 8

DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1,
    "BOOL": 1, "C64": 8,
}  # fmt: skip
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})
QUANTISED_PREFIXES = ("F8_", "F6_", "F4")
MAX_ENTRY_CHARACTERS = 4096  # dtype, shape and offsets of one tensor, with room to spare

_DECODER = json.JSONDecoder(object_pairs_hook=refuse_repeats)


@dataclass(frozen=True, slots=True)
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
        """True for the dtypes that arithmetic works on (F64, F32, F16, BF16)."""
        return self.dtype in FLOAT_DTYPES


class Header(NamedTuple):
    """The checked header of one file: its string metadata and its tensors in the order of their bytes."""

    metadata: dict[str, str]
    tensors: tuple[TensorInfo, ...]


class TensorSpec(NamedTuple):
    """Name, dtype and shape of a tensor that is to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its data."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def read_header(path: Path) -> Header:
    """Return the checked header of the safetensors file `path`.

    Raises `MissingPathError` when there is no such file and `CheckpointError` for one that can't be read, is truncated
    or longer than its header says, for a header that is too large or not JSON, for offsets that overlap, leave gaps or
    do not fit dtype and shape, for a name that occurs twice, is empty or can't be printed, and for 8-bit and narrower
    float storage.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
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
        data_begin = LENGTH_BYTES + length
        try:
            metadata, tensors = _parse(path, read_text(file, length), data_begin)
        except CheckpointError:
            raise
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: the header cannot be read ({error}); the file is damaged or no safetensors file"
            ) from error
    tensors.sort(key=lambda info: (info.begin, info.end))
    _check_coverage(path, tensors, data_begin, size)
    return Header(metadata, tuple(tensors))


def _parse(path: Path, text: str, data_begin: int) -> tuple[dict[str, str], list[TensorInfo]]:
    """Return metadata and tensors, built one by one: a hostile header can't take many times its own size in memory."""
    metadata: dict[str, str] = {}

    def read_value(name: str, position: int) -> tuple[TensorInfo | None, int]:
        if name == "__metadata__":
            values, position = _read_metadata(path, text, position)
            metadata.update(values)
            return None, position
        entry, position = _read_entry(name, text, position)
        return _tensor_info(path, name, entry, data_begin), position

    members, end = read_members(text, 0, read_value)
    if end != len(text):
        raise ValueError(f"text after the object, at character {end}")
    return metadata, [info for info in members.values() if info is not None]


def _read_metadata(path: Path, text: str, position: int) -> tuple[dict[str, str], int]:
    def read_string(_: str, start: int) -> tuple[str, int]:
        if not text.startswith('"', start):
            raise wrong
        return _DECODER.raw_decode(text, start)

    wrong = CheckpointError(f"{path}: __metadata__ in the header is not a map from strings to strings")
    if text.startswith("null", position):
        return {}, position + len("null")
    if not text.startswith("{", position):
        raise wrong
    values, position = read_members(text, position, read_string)
    for pair in values.items():
        "".join(pair).encode("utf-8")  # a lone surrogate could be neither printed nor written again
    return values, position


def _read_entry(name: str, text: str, position: int) -> tuple[Any, int]:
    """Return the value at `position`, which may take no more text than what a tensor can need."""
    part = text[position : position + MAX_ENTRY_CHARACTERS]
    try:
        entry, length = _DECODER.raw_decode(part)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"the entry of {shown(name)} is not a JSON value of at most {MAX_ENTRY_CHARACTERS} characters"
        ) from error
    return entry, position + length


def _tensor_info(path: Path, name: str, entry: Any, data_begin: int) -> TensorInfo:
    if not name.isprintable() or not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise CheckpointError(
            f"{path}: the header names a tensor {shown(name)}, expected 1 to {MAX_NAME_CHARACTERS} printable "
            "characters; the file is damaged: write it again"
        )
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(
            f"{where}: got {shown(entry)}, expected dtype, shape and data_offsets; the header is damaged"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if isinstance(dtype, str) and dtype.startswith(QUANTISED_PREFIXES) and dtype.isprintable():
        raise CheckpointError(
            f"{where} is stored as {dtype[:20]}; arithmetic on quantised storage is refused: "
            "use the checkpoint's bfloat16, float16 or float32 version"
        )
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise CheckpointError(f"{where}: dtype {shown(dtype)} is unknown, expected one of {', '.join(DTYPE_BYTES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: shape {shown(shape)} or data_offsets {shown(offsets)} is not a list of sizes")
    # Zero dimensions don't excuse the others: torch multiplies all of them too.
    if math.prod(filter(None, shape)) > MAX_SIZE // DTYPE_BYTES[dtype]:
        raise CheckpointError(f"{where}: shape {shown(shape)} takes more than 2**63 bytes; the header is damaged")
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise CheckpointError(
            f"{where}: offsets {offsets} span {offsets[1] - offsets[0]} bytes, "
            f"but {dtype} of shape {shown(shape)} takes {expected}; the header is damaged"
        )
    begin, end = (data_begin + offset for offset in offsets)
    return TensorInfo(name, sys.intern(dtype), tuple(shape), path, begin, end)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_SIZE for item in value)


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
