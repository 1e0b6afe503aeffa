"""The inner loop of a comparison, compiled by Numba: one pass over a tile gives every sum that is needed of it.

The sums of a tile may be reordered by the compiler, the same way on every run of one machine; tiles are added exactly.
"""

from __future__ import annotations

import numpy as np

from skillgraft.arithmetic.kernels import _dot, _exact, _load, _loose, _value

BLOCK = 2048
"""Elements that are worked on together: the differences of a few vectors stay in a core's first caches."""

DOT, FOURTH, SAME, OPPOSITE = 0, 1, 2, 3
"""What is summed of each pair: a·b, a²·b², [a·b > 0], [a·b < 0]."""

_EXPONENT = np.uint64(0x7FF0000000000000)
_HALF_SPACING = 2.0**-8  # of bf16 numbers in [1, 2): half of 2^-7
_LEAST_HALF_SPACING = 2.0**-134  # of bf16 numbers near zero


@_loose
def _pair(one, other, count, out):  # type: ignore[no-untyped-def]
    dot = fourth = 0.0
    same = opposite = 0
    for k in range(count):
        product = one[k] * other[k]
        dot += product
        fourth += product * product
        same += product > 0.0
        opposite += product < 0.0
    out[0] += dot
    out[1] += fourth
    out[2] += same
    out[3] += opposite


@_loose
def _alone(values, count, out):  # type: ignore[no-untyped-def]
    dot = fourth = 0.0
    nonzero = 0
    for k in range(count):
        square = values[k] * values[k]
        dot += square
        fourth += square * square
        nonzero += square > 0.0
    out[0] += dot
    out[1] += fourth
    out[2] += nonzero


@_loose
def _below(values, spacing, count):  # type: ignore[no-untyped-def]
    total = 0
    for k in range(count):
        total += abs(values[k]) < spacing[k]
    return total


@_exact
def compare_tile(raws, codes, count, firsts, terms, signs, base, halves, pairs, below):  # type: ignore[no-untyped-def]
    """Sum a tile of `count` elements; return ‖base‖², 0 where `base` is negative.

    raws (leaves, bytes) with dtype `codes`, leaf `base` being the base; vector j is Σ signs·leaf over
    terms[firsts[j] : firsts[j + 1]]. pairs (vectors·(vectors + 1)/2, 4) gets DOT, FOURTH, SAME, OPPOSITE of each pair
    i <= j, row by row; below (vectors) counts elements that are not zero and smaller than half the spacing of bf16
    numbers at the base. A product of two elements below 1e-308 counts as zero.
    """
    vectors = len(firsts) - 1
    values = np.empty((vectors, BLOCK))
    wide, spacing = np.empty(BLOCK), np.empty(BLOCK)
    bits = wide.view(np.uint64)
    spacing_bits = spacing.view(np.uint64)
    pairs[:] = 0.0
    below[:] = 0.0
    squares = 0.0
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        for j in range(vectors):
            _value(raws, codes, firsts[j], firsts[j + 1], terms, signs, start, size, halves, wide, values[j])
        if base >= 0:
            _load(raws[base], codes[base], start, size, halves, wide)
            squares += _dot(wide, wide, size)
            for k in range(size):
                spacing_bits[k] = bits[k] & _EXPONENT
            for k in range(size):
                spacing[k] = max(spacing[k] * _HALF_SPACING, _LEAST_HALF_SPACING)
        place = 0
        for i in range(vectors):
            before = pairs[place, SAME]
            _alone(values[i], size, pairs[place])
            if base >= 0:  # zeros are smaller too
                below[i] += _below(values[i], spacing, size) - (size - (pairs[place, SAME] - before))
            place += 1
            for j in range(i + 1, vectors):
                _pair(values[i], values[j], size, pairs[place])
                place += 1
    return squares
