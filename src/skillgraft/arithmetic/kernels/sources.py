"""Reading sources and operands in fp64, their sums and products: inner loops, compiled by Numba.

Reordering and contraction are allowed in `loose` functions only, which serve reports and angles and give
the same result on every run of one machine.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from skillgraft.arithmetic.kernels.codes import BF16, F32, F64
from skillgraft.arithmetic.kernels.native import BLOCK

strict = njit(nogil=True, error_model="numpy")
loose = njit(nogil=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})


@loose
def _sum(values, count):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(count):
        total += values[k]
    return total


@loose
def dot_product(one, other, count):  # type: ignore[no-untyped-def]
    """Return Σ one·other over the first `count` elements."""
    total = 0.0
    for k in range(count):
        total += one[k] * other[k]
    return total


@loose
def sums_of_squares(combined, exact, stored, count):  # type: ignore[no-untyped-def]
    """Return ‖combined‖², ‖stored − exact‖² and ‖stored‖²."""
    change = loss = stored_squares = 0.0
    for k in range(count):
        step = stored[k] - exact[k]
        change += combined[k] * combined[k]
        loss += step * step
        stored_squares += stored[k] * stored[k]
    return change, loss, stored_squares


@strict
def _as_float(bits):  # type: ignore[no-untyped-def]
    """Return the fp32 number with these bits, in fp64."""
    return np.float64(np.uint32(bits).view(np.float32))


@strict
def brain(bits):  # type: ignore[no-untyped-def]
    """Return the bf16 number with these bits, in fp64."""
    return _as_float(np.uint32(bits) << np.uint32(16))


@strict
def all_finite(values):  # type: ignore[no-untyped-def]
    """Return whether no element of a row of fp64 is NaN or infinite."""
    if np.isfinite(_sum(values, len(values))):
        return True
    for k in range(len(values)):  # noqa: SIM110 - compiled
        if not np.isfinite(values[k]):
            return False
    return True


@strict
def load(raw, code, start, count, halves, out):  # type: ignore[no-untyped-def]
    """Widen `count` elements of a source's bytes to fp64."""
    if code == BF16:
        short = raw[2 * start : 2 * (start + count)].view(np.uint16)
        for k in range(count):
            out[k] = brain(short[k])
    elif code == F32:
        stored = raw[4 * start : 4 * (start + count)].view(np.float32)
        for k in range(count):
            out[k] = stored[k]
    elif code == F64:
        double = raw[8 * start : 8 * (start + count)].view(np.float64)
        for k in range(count):
            out[k] = double[k]
    else:
        short = raw[2 * start : 2 * (start + count)].view(np.uint16)
        for k in range(count):
            out[k] = halves[short[k]]


@loose
def plus_square(total, value):  # type: ignore[no-untyped-def]
    """Return total + value², to be added up in any order."""
    return total + value * value


@strict
def _difference(left, right, size, out):  # type: ignore[no-untyped-def]
    for k in range(size):
        out[k] = brain(left[k]) - brain(right[k])


@strict
def load_operand(raws, codes, first, last, terms, signs, start, size, halves, wide, out):  # type: ignore[no-untyped-def]
    """Write an operand's values, Σ signs·source over terms[first : last], of one block into `out`."""
    one = terms[first]
    if last - first == 2 and signs[first] > 0 and signs[first + 1] < 0:
        two = terms[first + 1]
        if codes[one] == BF16 and codes[two] == BF16:
            _difference(shorts(raws[one], start, size), shorts(raws[two], start, size), size, out)
            return
    load(raws[one], codes[one], start, size, halves, out)
    if signs[first] < 0:
        for k in range(size):
            out[k] = -out[k]
    for place in range(first + 1, last):
        load(raws[terms[place]], codes[terms[place]], start, size, halves, wide)
        if signs[place] > 0:
            for k in range(size):
                out[k] += wide[k]
        else:
            for k in range(size):
                out[k] -= wide[k]


@strict
def shorts(raw, start, size):  # type: ignore[no-untyped-def]
    """Return `size` elements of two bytes from element `start` on, as they lie in `raw`."""
    return raw[2 * start : 2 * (start + size)].view(np.uint16)


@strict
def is_difference(codes, terms, signs, first, last, base):  # type: ignore[no-untyped-def]
    """Return whether terms[first : last] are one bf16 source less the source `base`, which is bf16 too."""
    if base < 0 or last - first != 2 or terms[first + 1] != base or signs[first] < 0 or signs[first + 1] > 0:
        return False
    return codes[base] == BF16 and codes[terms[first]] == BF16


@strict
def two_differences(codes, firsts, terms, signs, base):  # type: ignore[no-untyped-def]
    """Return whether there are two operands, and both of them are that."""
    if len(firsts) != 3:
        return False
    one = is_difference(codes, terms, signs, firsts[0], firsts[1], base)
    return one and is_difference(codes, terms, signs, firsts[1], firsts[2], base)


@strict
def values_tile(raws, codes, count, first, last, terms, signs, halves, out, wide):  # type: ignore[no-untyped-def]
    """Write one operand's values, Σ signs·source over terms[first : last], into `out` (count,) fp64.

    `wide` (`BLOCK`,) is workspace.
    """
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        load_operand(raws, codes, first, last, terms, signs, start, size, halves, wide, out[start : start + size])


@strict
def gram_tile(values, out):  # type: ignore[no-untyped-def]
    """Write the dot products of the rows of `values` (operands, count) into `out` (operands, operands)."""
    for i in range(len(values)):
        for j in range(i, len(values)):
            out[i, j] = out[j, i] = dot_product(values[i], values[j], values.shape[1])


@strict
def product_tile(a, b, start, stop, out):  # type: ignore[no-untyped-def]
    """Write the elements `start` to `stop` of b @ a, flattened, into `out`; a (rank, in), b (out, rank), fp64."""
    columns = a.shape[1]
    row = start // columns
    position = start
    while position < stop:
        end = min(stop, (row + 1) * columns)
        left = position - row * columns
        line = out[position - start : end - start]
        factor, part = b[row, 0], a[0, left : left + len(line)]
        for k in range(len(line)):
            line[k] = factor * part[k]
        for r in range(1, a.shape[0]):
            factor, part = b[row, r], a[r, left : left + len(line)]
            for k in range(len(line)):
                line[k] += factor * part[k]
        position, row = end, row + 1
