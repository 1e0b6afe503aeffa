"""Factors of a delta in few bits: each singular direction in a width of its own, packed into bytes. Loads no torch.

After the mixed-precision quantisation of SkillPacks (GraftLLM, arXiv 2505.18502, section 3.3): the directions of the
largest singular values get the most bits. A factor row is cut into groups of 64 numbers with one scale s each;
a b-bit code c stands for s·(c − (2^b − 1)/2), which is symmetric and uses every code. Departures: codes are rounded to
the nearest, with the clipping of each group searched for the least squared error, since no calibration data are asked
for (the paper rounds by GPTQ); scales are stored in bf16, and codes are chosen for the scale as it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, UInt8, UInt16

WIDTHS = (8, 4, 3, 2)
GROUP = 64
_CLIPS = {8: (1.0, 0.95), 4: tuple(np.linspace(0.6, 1.0, 9)), 3: tuple(np.linspace(0.5, 1.0, 11)),
          2: tuple(np.linspace(0.4, 1.0, 13))}  # fmt: skip

LOSS = {8: 3.6e-5, 4: 0.0089, 3: 0.0333, 2: 0.1135}
"""‖x − stored(x)‖² / ‖x‖² expected of independent Gaussians, by width (`tests/skills/test_packed.py` measures it)."""


class Encoded(NamedTuple):
    """Quantised factors: packed codes and bf16 scales (as their bits) of a (rank, in) and of bᵀ (rank, out)."""

    a: UInt8[np.ndarray, " a_bytes"]
    b: UInt8[np.ndarray, " b_bytes"]
    a_scales: UInt16[np.ndarray, "rank a_groups"]
    b_scales: UInt16[np.ndarray, "rank b_groups"]


def groups(length: int) -> int:
    """Return the number of scales of a factor row."""
    return -(-length // GROUP)


def row_bytes(length: int, width: int) -> int:
    """Return the bytes of a row's codes."""
    return -(-length * width // 8)


def factor_bytes(length: int, bits: Mapping[int, int]) -> int:
    """Return the bytes of a factor's codes, `bits` giving the number of directions by width."""
    return sum(count * row_bytes(length, width) for width, count in bits.items())


def direction_bytes(rows: int, columns: int, width: int) -> int:
    """Return the bytes of one direction of a (rows, columns) matrix, scales included."""
    return row_bytes(rows, width) + row_bytes(columns, width) + 2 * (groups(rows) + groups(columns))


def encode_packed(
    a: Float[np.ndarray, "rank in_features"], b: Float[np.ndarray, "out_features rank"], bits: Mapping[int, int]
) -> Encoded:
    """Return quantised factors; the first bits[8] directions get 8 bits, the next bits[4] 4, then 3, then 2."""
    a_codes, a_scales = _encode_rows(a, bits)
    b_codes, b_scales = _encode_rows(b.T, bits)
    return Encoded(a_codes, b_codes, a_scales, b_scales)


def decode_packed(
    encoded: Encoded, shape: tuple[int, int], bits: Mapping[int, int]
) -> tuple[Float32[np.ndarray, "rank in_features"], Float32[np.ndarray, "out_features rank"]]:
    """Return the factors (a, b) of `b @ a`, which fp32 holds exactly. Raises `ValueError` as `check_scales` does."""
    a = _decode_rows(encoded.a, encoded.a_scales, shape[1], bits)
    b = _decode_rows(encoded.b, encoded.b_scales, shape[0], bits)
    return a, np.ascontiguousarray(b.T)


def check_scales(scales: UInt16[np.ndarray, "rank groups"], bits: Mapping[int, int]) -> None:
    """Raise `ValueError` for a scale that is NaN, infinite or negative, or with which the largest code overflows."""
    if (scales >= 0x7F80).any():
        raise ValueError("a scale is NaN, infinite or negative")
    row = 0
    for width in WIDTHS:
        part = _bf16_values(scales[row : row + bits.get(width, 0)]).astype(np.float64)
        row += len(part)
        if (part * ((1 << width) - 1) / 2 > np.finfo(np.float32).max).any():
            raise ValueError(f"a scale is so large that its codes of {width} bits overflow float32")


def _encode_rows(
    rows: Float[np.ndarray, "rank length"], bits: Mapping[int, int]
) -> tuple[UInt8[np.ndarray, " bytes"], UInt16[np.ndarray, "rank groups"]]:
    packed, scales, begin = [], [], 0
    for width in WIDTHS:
        part = rows[begin : begin + bits.get(width, 0)]
        begin += len(part)
        if len(part):
            codes, row_scales = _quantise(part, width)
            packed.append(_pack(codes, width).reshape(-1))
            scales.append(row_scales)
    return np.concatenate(packed), np.concatenate(scales)


def _quantise(
    rows: Float[np.ndarray, "rank length"], width: int
) -> tuple[UInt8[np.ndarray, "rank length"], UInt16[np.ndarray, "rank groups"]]:
    length = rows.shape[1]
    padded = np.zeros((len(rows), groups(length) * GROUP))
    padded[:, :length] = rows
    grouped = padded.reshape(len(rows), -1, GROUP)
    half = ((1 << width) - 1) / 2
    largest = np.abs(grouped).max(axis=2)
    least = np.full(largest.shape, np.inf)
    codes = np.zeros(grouped.shape, dtype=np.uint8)
    scales = np.zeros(largest.shape, dtype=np.uint16)
    inside = np.arange(padded.shape[1]).reshape(-1, GROUP) < length
    for clip in _CLIPS[width]:
        tried = _bf16_bits(largest * clip / half)
        scale = _bf16_values(tried).astype(np.float64)[..., None]
        whole = np.rint(np.divide(grouped, scale, out=np.zeros_like(grouped), where=scale > 0) + half)
        whole = np.clip(whole, 0, 2 * half)
        loss = (np.square(grouped - scale * (whole - half)) * inside).sum(axis=2)
        better = loss < least
        least[better] = loss[better]
        scales[better] = tried[better]
        codes[better] = whole[better]
    return codes.reshape(len(rows), -1)[:, :length], scales


def _decode_rows(
    packed: UInt8[np.ndarray, " bytes"], scales: UInt16[np.ndarray, "rank groups"], length: int, bits: Mapping[int, int]
) -> Float32[np.ndarray, "rank length"]:
    check_scales(scales, bits)
    out = np.empty((len(scales), length), dtype=np.float32)
    row = begin = 0
    for width in WIDTHS:
        count = bits.get(width, 0)
        size = count * row_bytes(length, width)
        codes = _unpack(packed[begin : begin + size].reshape(count, row_bytes(length, width)), length, width)
        scale = np.repeat(_bf16_values(scales[row : row + count]), GROUP, axis=1)[:, :length]
        # Exact in fp32: a scale has 8 significant bits, a code and its half 9 more.
        out[row : row + count] = scale * (codes.astype(np.float32) - np.float32(((1 << width) - 1) / 2))
        row, begin = row + count, begin + size
    return out


def _pack(codes: UInt8[np.ndarray, "rank length"], width: int) -> UInt8[np.ndarray, "rank bytes"]:
    flags = np.unpackbits(codes[..., None], axis=-1, count=width, bitorder="little")
    return np.packbits(flags.reshape(len(codes), -1), axis=1, bitorder="little")


def _unpack(packed: UInt8[np.ndarray, "rank bytes"], length: int, width: int) -> UInt8[np.ndarray, "rank length"]:
    flags = np.unpackbits(packed, axis=1, count=length * width, bitorder="little").reshape(len(packed), length, width)
    return flags @ (1 << np.arange(width, dtype=np.uint8))


def _bf16_bits(values: Float[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Return non-negative numbers as bf16, rounded to nearest and ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _bf16_values(bits: UInt16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    return (bits.astype(np.uint32) << 16).view(np.float32)
