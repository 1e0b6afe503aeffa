"""Rounding from fp64 once, to nearest and ties to even: inner loops, compiled by Numba."""

from __future__ import annotations

import numpy as np

from skillgraft.arithmetic.kernels.codes import BF16, F32, F64
from skillgraft.arithmetic.kernels.sources import brain, plus_square, strict


@strict
def store(exact, code, start, count, raw, back, workspace):  # type: ignore[no-untyped-def]
    """Round `exact` once, to nearest and ties to even, into `raw`; `back` gets what was stored, in fp64.

    `workspace` is a block of fp64 numbers.
    """
    if code == BF16:
        short = raw[2 * start : 2 * (start + count)].view(np.uint16)
        if _store_brain(exact, count, short, back):
            _store_brain_with_care(exact, count, short, back, workspace)
    elif code == F32:
        stored = raw[4 * start : 4 * (start + count)].view(np.float32)
        for k in range(count):
            stored[k] = exact[k]
        for k in range(count):
            back[k] = stored[k]
    elif code == F64:
        double = raw[8 * start : 8 * (start + count)].view(np.float64)
        for k in range(count):
            double[k] = exact[k]
            back[k] = exact[k]
    else:
        _store_half(exact, start, count, raw, back)


@strict
def _cut(exact):  # type: ignore[no-untyped-def]
    """Return `exact` rounded to the 8 significant bits of bf16, in fp64: to nearest, ties to even.

    Done on the bits of fp64; what is left is a number of fp32 whose low half is empty, so that nothing rounds twice.
    """
    bits = np.float64(exact).view(np.uint64)
    bits = np.uint64(bits + np.uint64((1 << 44) - 1) + ((bits >> np.uint64(45)) & np.uint64(1)))
    return np.uint64(bits & np.uint64(0xFFFF_E000_0000_0000)).view(np.float64)


_LEAST = np.uint64(np.float64(2.0**-126).view(np.uint64))
_MOST = np.uint64(np.float64(2.0**128 - 2.0**120).view(np.uint64))


@strict
def _below_magnitude(rounded):  # type: ignore[no-untyped-def]
    """Return the bits of |rounded| in fp64, less one: they sort as magnitudes do, and zero becomes the largest."""
    return np.uint64((np.float64(rounded).view(np.uint64) & np.uint64(0x7FFF_FFFF_FFFF_FFFF)) - np.uint64(1))


@strict
def _outside(least, most):  # type: ignore[no-untyped-def]
    """Return whether something that `_cut` gave is neither a normal number of bf16 nor zero.

    Of all `_below_magnitude` `least` is the smallest without a sign, `most` the largest with one: both leave zero out.
    """
    return least < np.uint64(_LEAST - np.uint64(1)) or most > np.int64(_MOST - np.uint64(1))


@strict
def _store_brain(exact, count, short, back):  # type: ignore[no-untyped-def]
    """Round to bf16; return whether some element is not what `_cut` can round."""
    least, most = np.uint64(0xFFFF_FFFF_FFFF_FFFF), np.int64(-1)
    for k in range(count):
        rounded = _cut(exact[k])
        bits = np.float32(rounded).view(np.uint32)
        below = _below_magnitude(rounded)
        least, most = min(least, below), max(most, np.int64(below))
        back[k] = rounded
        short[k] = np.uint16(bits >> np.uint32(16))
    return _outside(least, most)


@strict
def finish_brain(combined, scale, base, count, short):  # type: ignore[no-untyped-def]
    """Round base + scale · combined, base in bf16, to bf16 in one go that keeps nothing else.

    Returns what `sums_of_squares` returns, and whether some element is not what `_cut` can round.
    """
    least, most = np.uint64(0xFFFF_FFFF_FFFF_FFFF), np.int64(-1)
    change = loss = stored_squares = 0.0
    for k in range(count):
        exact = combined[k] * scale + brain(base[k])
        rounded = _cut(exact)
        bits = np.float32(rounded).view(np.uint32)
        below = _below_magnitude(rounded)
        least, most = min(least, below), max(most, np.int64(below))
        short[k] = np.uint16(bits >> np.uint32(16))
        change = plus_square(change, combined[k])
        loss = plus_square(loss, rounded - exact)
        stored_squares = plus_square(stored_squares, rounded)
    return change, loss, stored_squares, _outside(least, most)


@strict
def finish_two_brain(one, other, first, second, scale, base, count, short):  # type: ignore[no-untyped-def]
    """As `finish_brain` with combined = (one − base) · first + (other − base) · second, all bf16."""
    least, most = np.uint64(0xFFFF_FFFF_FFFF_FFFF), np.int64(-1)
    change = loss = stored_squares = 0.0
    for k in range(count):
        origin = brain(base[k])
        combined = (brain(one[k]) - origin) * first
        combined += (brain(other[k]) - origin) * second
        exact = combined * scale + origin
        rounded = _cut(exact)
        bits = np.float32(rounded).view(np.uint32)
        below = _below_magnitude(rounded)
        least, most = min(least, below), max(most, np.int64(below))
        short[k] = np.uint16(bits >> np.uint32(16))
        change = plus_square(change, combined)
        loss = plus_square(loss, rounded - exact)
        stored_squares = plus_square(stored_squares, rounded)
    return change, loss, stored_squares, _outside(least, most)


@strict
def finish_brain_alone(combined, count, short):  # type: ignore[no-untyped-def]
    """Round `combined` itself as `finish_brain` does."""
    least, most = np.uint64(0xFFFF_FFFF_FFFF_FFFF), np.int64(-1)
    change = loss = stored_squares = 0.0
    for k in range(count):
        rounded = _cut(combined[k])
        bits = np.float32(rounded).view(np.uint32)
        below = _below_magnitude(rounded)
        least, most = min(least, below), max(most, np.int64(below))
        short[k] = np.uint16(bits >> np.uint32(16))
        change = plus_square(change, combined[k])
        loss = plus_square(loss, rounded - combined[k])
        stored_squares = plus_square(stored_squares, rounded)
    return change, loss, stored_squares, _outside(least, most)


@strict
def _store_brain_with_care(exact, count, short, back, workspace):  # type: ignore[no-untyped-def]
    """Round to bf16 by way of fp32, for subnormal and very large numbers, infinity and NaN."""
    bits = workspace.view(np.uint32)
    ties = np.uint32(0)
    for k in range(count):
        bits[k] = np.float32(exact[k]).view(np.uint32)
        ties |= np.uint32((bits[k] & np.uint32(0xFFFF)) == np.uint32(0x8000))
    if ties:
        _leave_ties(exact, count, bits)
    for k in range(count):
        single = bits[k]
        upper = np.uint32(single + np.uint32(0x7FFF) + ((single >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        short[k] = np.uint16(upper)
        back[k] = brain(upper)


@strict
def _leave_ties(exact, count, bits):  # type: ignore[no-untyped-def]
    """Move fp32 values off a tie of bf16 that the first rounding made, to the side on which the exact value lies.

    Else fp64 to fp32 to bf16 would round twice.
    """
    single = bits.view(np.float32)
    for k in range(count):
        if (bits[k] & np.uint32(0xFFFF)) == np.uint32(0x8000):
            stored = np.float64(single[k])
            if abs(exact[k]) > abs(stored):
                bits[k] += np.uint32(1)
            elif abs(exact[k]) < abs(stored):
                bits[k] -= np.uint32(1)


@strict
def _store_half(exact, start, count, raw, back):  # type: ignore[no-untyped-def]
    short = raw[2 * start : 2 * (start + count)].view(np.uint16)
    for k in range(count):
        size = abs(exact[k])
        sign = np.uint16(0x8000) if (exact[k] < 0 or (exact[k] == 0 and 1.0 / exact[k] < 0)) else np.uint16(0)
        biased = np.int64(np.float64(size).view(np.uint64) >> np.uint64(52))
        exponent = max(int(biased) - 1023, -14)
        if not size < 65520.0:  # NaN too
            short[k] = sign | np.uint16(0x7C00 if size == size else 0x7E00)
            back[k] = np.inf if size == size else np.nan
            continue
        step = 2.0 ** (exponent - 10)
        units = np.int64(np.rint(size / step))  # exact but for the rounding: steps are powers of two
        # Units of a normal number are 1024 to 2048; the leading bit, and a carry into it, move the exponent.
        short[k] = sign | np.uint16(((exponent + 14) << 10) + units)
        back[k] = units * step if sign == 0 else -units * step
