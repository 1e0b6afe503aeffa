"""Sparse deltas: the elements that are kept, bit for bit, and their positions. Loads no torch.

The flattened tensor is cut into blocks of 65,536 elements. `offsets` (I64, blocks + 1) say which values belong to which
block, so that any part is decoded without reading the rest; the index holds, in each block, either the ascending places
of its elements (`places`: U16, 2 bytes for each) or one bit for every element (`bitmap`: U8, least significant bit
first), whichever is smaller over the tensor: the bitmap above one element in sixteen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Int64, Shaped, UInt

BLOCK = 1 << 16
RUN = 16
"""Blocks that are looked at together where a whole index is checked."""

Coding = Literal["places", "bitmap"]


@dataclass(frozen=True)
class Encoded:
    """A sparse delta: its coding, and what is stored."""

    coding: Coding
    offsets: Int64[np.ndarray, " bounds"]
    index: UInt[np.ndarray, " index"]
    values: Shaped[np.ndarray, " count"]


def blocks(elements: int) -> int:
    """Return the number of blocks of a tensor."""
    return -(-elements // BLOCK)


def index_length(coding: Coding, elements: int, count: int) -> int:
    """Return the length of the index of `count` kept elements of a tensor of `elements`."""
    return count if coding == "places" else -(-elements // 8)


def cheaper_coding(elements: int, count: int) -> Coding:
    """Return the coding whose index takes fewer bytes."""
    return "bitmap" if 2 * count > -(-elements // 8) else "places"


def encode_sparse(values: Shaped[np.ndarray, " elements"], mask: Bool[np.ndarray, " elements"]) -> Encoded:
    """Return the kept elements of a flat tensor; their bytes are not interpreted."""
    positions = np.flatnonzero(mask)
    bounds = np.minimum(np.arange(blocks(len(values)) + 1) * BLOCK, len(values))
    offsets = np.searchsorted(positions, bounds).astype(np.int64)
    coding = cheaper_coding(len(values), len(positions))
    index = np.packbits(mask, bitorder="little") if coding == "bitmap" else (positions & (BLOCK - 1)).astype(np.uint16)
    return Encoded(coding, offsets, index, values[positions])


def index_part(
    coding: Coding, offsets: Int64[np.ndarray, " bounds"], elements: int, first: int, last: int
) -> tuple[int, int]:
    """Return the range of the index that holds the blocks from `first` to `last` of a tensor of `elements`."""
    if coding == "places":
        return int(offsets[first]), int(offsets[last])
    return first * BLOCK // 8, -(-min(last * BLOCK, elements) // 8)


def positions_of(
    coding: Coding,
    index: UInt[np.ndarray, " index"],
    offsets: Int64[np.ndarray, " bounds"],
    elements: int,
) -> Int64[np.ndarray, " count"]:
    """Return the ascending positions that a run of whole blocks of `elements` elements in all holds values for.

    `offsets` are those of the run and may begin at any number. Raises `ValueError` for an index that does not agree
    with them: places that do not ascend or lie beyond the tensor, a bitmap with other numbers of ones.
    """
    counts = np.diff(offsets)
    if coding == "places":
        positions = index.astype(np.int64) + np.repeat(np.arange(len(counts), dtype=np.int64) * BLOCK, counts)
        if len(positions) and (not (np.diff(positions) > 0).all() or positions[-1] >= elements):
            raise ValueError("its places do not ascend or lie beyond the tensor")
        return positions
    flags = np.unpackbits(index, bitorder="little")
    positions = np.flatnonzero(flags)
    marked = np.diff(np.searchsorted(positions, np.minimum(np.arange(len(counts) + 1) * BLOCK, elements)))
    if len(positions) != counts.sum() or not np.array_equal(marked, counts):
        raise ValueError("its bitmap does not mark as many elements as there are values")
    return positions


def check_offsets(offsets: Int64[np.ndarray, " bounds"], elements: int, count: int) -> None:
    """Raise `ValueError` unless the offsets lead through `count` values in blocks of a tensor of `elements`."""
    sizes = np.minimum(BLOCK, elements - np.arange(blocks(elements)) * BLOCK)
    ends = (0, count) if len(sizes) else (0, 0)
    steps = offsets[1:] - offsets[:-1]
    inside = (offsets >= 0).all() and (offsets <= count).all()
    if not inside or (offsets[0], offsets[-1]) != ends or not ((steps >= 0) & (steps <= sizes)).all():
        raise ValueError(f"its offsets do not ascend from 0 to {count} in steps that its blocks have room for")


def decode_sparse(encoded: Encoded, elements: int) -> Shaped[np.ndarray, " elements"]:
    """Return the flat tensor: the values at their positions, zero elsewhere. Raises as the checks do."""
    check_offsets(encoded.offsets, elements, len(encoded.values))
    out = np.zeros(elements, dtype=encoded.values.dtype)
    out[positions_of(encoded.coding, encoded.index, encoded.offsets, elements)] = encoded.values
    return out
