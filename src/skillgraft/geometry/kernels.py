"""The inner loop of a comparison, compiled by Numba: one pass over a tile gives every sum that is needed of it.

The sums of a tile may be reordered by the compiler, the same way on every run of one machine; tiles are added exactly.
"""

from __future__ import annotations

import numpy as np

from skillgraft.arithmetic.kernels.sources import (
    brain,
    dot_product,
    is_difference,
    load,
    load_operand,
    loose,
    shorts,
    strict,
    two_differences,
)
from skillgraft.geometry.native import BLOCK, DOT, FOURTH, OPPOSITE, SAME

_EXPONENT = np.uint64(0x7FF0000000000000)
_HALF_SPACING = 2.0**-8  # of bf16 numbers in [1, 2): half of 2^-7
_LEAST_HALF_SPACING = 2.0**-134  # of bf16 numbers near zero


_NONE, _ONE = np.float32(0), np.float32(1)


@loose
def _single(bits):  # type: ignore[no-untyped-def]
    """Return the bf16 number with these bits, in fp32."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@loose
def _pair(one, other, count, out):  # type: ignore[no-untyped-def]
    dot = fourth = same = opposite = 0.0
    for k in range(count):
        product = one[k] * other[k]
        dot += product
        fourth += product * product
        same += 1.0 if product > 0.0 else 0.0
        opposite += 1.0 if product < 0.0 else 0.0
    out[DOT] += dot
    out[FOURTH] += fourth
    out[SAME] += same
    out[OPPOSITE] += opposite


@loose
def _alone(values, count, out):  # type: ignore[no-untyped-def]
    dot = fourth = nonzero = 0.0
    for k in range(count):
        square = values[k] * values[k]
        dot += square
        fourth += square * square
        nonzero += 1.0 if square > 0.0 else 0.0
    out[DOT] += dot
    out[FOURTH] += fourth
    out[SAME] += nonzero


@loose
def _half_spacing(base):  # type: ignore[no-untyped-def]
    """Return half the spacing of bf16 numbers at `base`, an fp64 number."""
    power = np.uint64(np.float64(base).view(np.uint64) & _EXPONENT).view(np.float64)
    return max(power * _HALF_SPACING, _LEAST_HALF_SPACING)


@loose
def _upon_base(values, base, count, out):  # type: ignore[no-untyped-def]
    """Sum as `_alone` does; return how many elements are below the spacing at the base but not zero, and ‖base‖²."""
    dot = fourth = nonzero = below = squares = 0.0
    for k in range(count):
        square = values[k] * values[k]
        dot += square
        fourth += square * square
        nonzero += 1.0 if square > 0.0 else 0.0
        below += 1.0 if abs(values[k]) < _half_spacing(base[k]) else 0.0
        squares += base[k] * base[k]
    out[DOT] += dot
    out[FOURTH] += fourth
    out[SAME] += nonzero
    return below - (count - nonzero), squares


@loose
def _brain_upon_base(source, base, count, values, out):  # type: ignore[no-untyped-def]
    """Write source − base, both bf16, into `values` and sum as `_alone` does in the same pass; return ‖base‖².

    Two different numbers of bf16 are never closer than half the spacing at one of them: `below` has nothing to count.
    """
    dot = fourth = nonzero = squares = 0.0
    for k in range(count):
        wide = brain(base[k])
        value = brain(source[k]) - wide
        values[k] = value
        square = value * value
        dot += square
        fourth += square * square
        nonzero += 1.0 if square > 0.0 else 0.0
        squares += wide * wide
    out[DOT] += dot
    out[FOURTH] += fourth
    out[SAME] += nonzero
    return squares


@loose
def _brain_two_upon_base(one, other, base, count, pairs):  # type: ignore[no-untyped-def]
    """Sum one − base and other − base, all bf16, into the three rows of `pairs`, keeping nothing; return ‖base‖²."""
    dot = mixed = last = fourth = mixed_fourth = last_fourth = squares = 0.0
    for k in range(count):
        wide = brain(base[k])
        a, b = brain(one[k]) - wide, brain(other[k]) - wide
        aa, ab, bb = a * a, a * b, b * b
        dot += aa
        mixed += ab
        last += bb
        fourth += aa * aa
        mixed_fourth += ab * ab
        last_fourth += bb * bb
        squares += wide * wide
    pairs[0, DOT] += dot
    pairs[1, DOT] += mixed
    pairs[2, DOT] += last
    pairs[0, FOURTH] += fourth
    pairs[1, FOURTH] += mixed_fourth
    pairs[2, FOURTH] += last_fourth
    # In fp32 twice as many at once: a difference keeps its sign there, and a block's counts are small integers.
    first = second = both = opposite = _NONE
    for k in range(count):
        wide = _single(base[k])
        a, b = _single(one[k]) - wide, _single(other[k]) - wide
        in_one, in_other = _ONE if a != _NONE else _NONE, _ONE if b != _NONE else _NONE
        first += in_one
        second += in_other
        both += in_one * in_other
        opposite += in_one * in_other if (a < _NONE) != (b < _NONE) else _NONE
    pairs[0, SAME] += first
    pairs[1, SAME] += both - opposite
    pairs[2, SAME] += second
    pairs[1, OPPOSITE] += opposite
    return squares


@strict
def compare_tile(raws, codes, count, firsts, terms, signs, base, halves, pairs, below, values, wide):  # type: ignore[no-untyped-def]
    """Sum a tile of `count` elements; return ‖base‖², 0 where `base` is negative.

    raws (sources, bytes) with dtype `codes`, source `base` being the base; vector j is Σ signs·source over
    terms[firsts[j] : firsts[j + 1]]. pairs (vectors·(vectors + 1)/2, 4) gets DOT, FOURTH, SAME, OPPOSITE of each pair
    i <= j, row by row; below (vectors) counts elements that are not zero and smaller than half the spacing of bf16
    numbers at the base. A product of two elements below 1e-308 counts as zero. `values` (vectors, `BLOCK`) and `wide`
    (`BLOCK`,) are workspace.
    """
    vectors = len(firsts) - 1
    for row in range(len(pairs)):
        for column in range(4):
            pairs[row, column] = 0.0
    for j in range(vectors):
        below[j] = 0.0
    squares = 0.0
    if two_differences(codes, firsts, terms, signs, base):
        for start in range(0, count, BLOCK):
            size = min(BLOCK, count - start)
            one, other = raws[terms[firsts[0]]], raws[terms[firsts[1]]]
            squares += _brain_two_upon_base(
                shorts(one, start, size), shorts(other, start, size), shorts(raws[base], start, size), size, pairs
            )
        return squares
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        place = 0
        for j in range(vectors):
            first, last, below_spacing, norm = firsts[j], firsts[j + 1], 0.0, 0.0
            one = terms[first]
            if is_difference(codes, terms, signs, first, last, base):
                short, under = shorts(raws[one], start, size), shorts(raws[base], start, size)
                norm = _brain_upon_base(short, under, size, values[j], pairs[place])
            else:
                load_operand(raws, codes, first, last, terms, signs, start, size, halves, wide, values[j])
                if base >= 0:
                    load(raws[base], codes[base], start, size, halves, wide)
                    below_spacing, norm = _upon_base(values[j], wide, size, pairs[place])
                else:
                    _alone(values[j], size, pairs[place])
            below[j] += below_spacing
            squares += norm if j == 0 else 0.0
            place += vectors - j
        if vectors == 0 and base >= 0:
            load(raws[base], codes[base], start, size, halves, wide)
            squares += dot_product(wide, wide, size)
        place = 0
        for i in range(vectors):
            for j in range(i + 1, vectors):
                _pair(values[i], values[j], size, pairs[place + j - i])
            place += vectors - i
    return squares
