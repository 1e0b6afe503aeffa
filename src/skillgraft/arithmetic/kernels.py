"""The inner loops on the CPU, compiled by Numba: a tile is read, combined in fp64 and rounded once in a single pass.

Work goes by blocks that stay in a core's cache. The definitions are those of `methods` and `rounding`, and the
tests hold both to the same bits: no floating-point contraction or reordering is allowed except in `_sum` and `_dot`,
which serve reports and angles and give the same result on every run of one machine.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from skillgraft.arithmetic.native import BF16, BLOCK, ELECT, F32, F64, WEIGHTED_SUM

_exact = njit(nogil=True, error_model="numpy")
_loose = njit(nogil=True, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})


@_loose
def _sum(values, count):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(count):
        total += values[k]
    return total


@_loose
def _dot(one, other, count):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(count):
        total += one[k] * other[k]
    return total


@_loose
def _squares(made, exact, stored, count):  # type: ignore[no-untyped-def]
    """Return ‖made‖², ‖stored − exact‖² and ‖stored‖²."""
    change = lost = kept = 0.0
    for k in range(count):
        step = stored[k] - exact[k]
        change += made[k] * made[k]
        lost += step * step
        kept += stored[k] * stored[k]
    return change, lost, kept


@_exact
def _as_float(bits):  # type: ignore[no-untyped-def]
    """Return the fp32 number with these bits, in fp64."""
    return np.float64(np.uint32(bits).view(np.float32))


@_exact
def _brain(bits):  # type: ignore[no-untyped-def]
    """Return the bf16 number with these bits, in fp64."""
    return _as_float(np.uint32(bits) << np.uint32(16))


@_exact
def all_finite(values):  # type: ignore[no-untyped-def]
    """Return whether no element of a row of fp64 is NaN or infinite."""
    if np.isfinite(_sum(values, len(values))):
        return True
    for k in range(len(values)):  # noqa: SIM110 - compiled
        if not np.isfinite(values[k]):
            return False
    return True


@_exact
def _load(raw, code, start, count, halves, out):  # type: ignore[no-untyped-def]
    """Widen `count` elements of a leaf's bytes to fp64."""
    if code == BF16:
        short = raw[2 * start : 2 * (start + count)].view(np.uint16)
        for k in range(count):
            out[k] = _brain(short[k])
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


@_exact
def _store(exact, code, start, count, raw, back, room):  # type: ignore[no-untyped-def]
    """Round `exact` once, to nearest and ties to even, into `raw`; `back` gets what was stored, in fp64.

    `room` is a block's fp64 numbers to work in.
    """
    if code == BF16:
        short = raw[2 * start : 2 * (start + count)].view(np.uint16)
        if _store_brain(exact, count, short, back):
            _store_brain_with_care(exact, count, short, back, room)
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


@_exact
def _cut(exact):  # type: ignore[no-untyped-def]
    """Return `exact` rounded to the 8 significant bits of bf16, in fp64: to nearest, ties to even.

    Done on the bits of fp64; what is left is a number of fp32 whose low half is empty, so that nothing rounds twice.
    """
    bits = np.float64(exact).view(np.uint64)
    bits = np.uint64(bits + np.uint64((1 << 44) - 1) + ((bits >> np.uint64(45)) & np.uint64(1)))
    return np.uint64(bits & np.uint64(0xFFFF_E000_0000_0000)).view(np.float64)


@_exact
def _outside(bits):  # type: ignore[no-untyped-def]
    """Return 1 unless these are the bits in fp32 of a normal number of bf16 or of zero: what `_cut` rounds rightly."""
    magnitude = np.uint32(bits & np.uint32(0x7FFF_FFFF))
    beyond = np.uint32(magnitude - np.uint32(0x0080_0000)) >= np.uint32(0x7F00_0000)
    return np.uint32(beyond) & np.uint32(magnitude != np.uint32(0))


@_exact
def _store_brain(exact, count, short, back):  # type: ignore[no-untyped-def]
    """Round to bf16; return whether some element is not what `_cut` can round."""
    outside = np.uint32(0)
    for k in range(count):
        rounded = _cut(exact[k])
        bits = np.float32(rounded).view(np.uint32)
        outside |= _outside(bits)
        back[k] = rounded
        short[k] = np.uint16(bits >> np.uint32(16))
    return outside


@_loose
def _plus_square(total, value):  # type: ignore[no-untyped-def]
    return total + value * value


@_exact
def _finish_brain(made, scale, base, count, short):  # type: ignore[no-untyped-def]
    """Round base + scale · made, base in bf16, to bf16 in one go that keeps nothing else.

    Returns what `_squares` returns, and whether some element is not what `_cut` can round.
    """
    outside = np.uint32(0)
    change = lost = kept = 0.0
    for k in range(count):
        wanted = made[k] * scale + _brain(base[k])
        rounded = _cut(wanted)
        bits = np.float32(rounded).view(np.uint32)
        outside |= _outside(bits)
        short[k] = np.uint16(bits >> np.uint32(16))
        change = _plus_square(change, made[k])
        lost = _plus_square(lost, rounded - wanted)
        kept = _plus_square(kept, rounded)
    return change, lost, kept, outside


@_exact
def _finish_two_brain(one, other, first, second, scale, base, count, short):  # type: ignore[no-untyped-def]
    """As `_finish_brain` with made = (one − base) · first + (other − base) · second, all bf16."""
    outside = np.uint32(0)
    change = lost = kept = 0.0
    for k in range(count):
        origin = _brain(base[k])
        made = (_brain(one[k]) - origin) * first
        made += (_brain(other[k]) - origin) * second
        wanted = made * scale + origin
        rounded = _cut(wanted)
        bits = np.float32(rounded).view(np.uint32)
        outside |= _outside(bits)
        short[k] = np.uint16(bits >> np.uint32(16))
        change = _plus_square(change, made)
        lost = _plus_square(lost, rounded - wanted)
        kept = _plus_square(kept, rounded)
    return change, lost, kept, outside


@_exact
def _finish_brain_alone(made, count, short):  # type: ignore[no-untyped-def]
    """Round `made` itself as `_finish_brain` does."""
    outside = np.uint32(0)
    change = lost = kept = 0.0
    for k in range(count):
        rounded = _cut(made[k])
        bits = np.float32(rounded).view(np.uint32)
        outside |= _outside(bits)
        short[k] = np.uint16(bits >> np.uint32(16))
        change = _plus_square(change, made[k])
        lost = _plus_square(lost, rounded - made[k])
        kept = _plus_square(kept, rounded)
    return change, lost, kept, outside


@_exact
def _store_brain_with_care(exact, count, short, back, room):  # type: ignore[no-untyped-def]
    """Round to bf16 by way of fp32, for subnormal and very large numbers, infinity and NaN."""
    bits = room.view(np.uint32)
    ties = np.uint32(0)
    for k in range(count):
        bits[k] = np.float32(exact[k]).view(np.uint32)
        ties |= np.uint32((bits[k] & np.uint32(0xFFFF)) == np.uint32(0x8000))
    if ties:
        _leave_ties(exact, count, bits)
    for k in range(count):
        found = bits[k]
        kept = np.uint32(found + np.uint32(0x7FFF) + ((found >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        short[k] = np.uint16(kept)
        back[k] = _brain(kept)


@_exact
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


@_exact
def _store_half(exact, start, count, raw, back):  # type: ignore[no-untyped-def]
    short = raw[2 * start : 2 * (start + count)].view(np.uint16)
    for k in range(count):
        size = abs(exact[k])
        sign = np.uint16(0x8000) if (exact[k] < 0 or (exact[k] == 0 and 1.0 / exact[k] < 0)) else np.uint16(0)
        exponent = max(np.int64(np.float64(size).view(np.uint64) >> np.uint64(52)) - 1023, -14)
        if not size < 65520.0:  # NaN too
            short[k] = sign | np.uint16(0x7C00 if size == size else 0x7E00)
            back[k] = np.inf if size == size else np.nan
            continue
        step = 2.0 ** (exponent - 10)
        units = np.int64(np.rint(size / step))  # exact but for the rounding: steps are powers of two
        # Units of a normal number are 1024 to 2048; the leading bit, and a carry into it, move the exponent.
        short[k] = sign | np.uint16(((exponent + 14) << 10) + units)
        back[k] = units * step if sign == 0 else -units * step


@_exact
def merge_tile(  # type: ignore[no-untyped-def]
    raws, codes, count, firsts, terms, signs, weights, masks, density, method, thresholds, normalize, divisor, factor,
    target, scales, halves, outs, out_code, sums, work,
):  # fmt: skip
    """Combine a tile of `count` elements and write it, rounded, for each λ in `scales`; return whether all is finite.

    raws (leaves, bytes) with dtype `codes`; operand j is Σ signs·leaf over terms[firsts[j] : firsts[j + 1]], masked by
    masks[j] over `density` where masks are given (operands, count); `thresholds` are fp32 magnitudes, none if empty.
    WEIGHTED_SUM makes (Σ weights·operand) / divisor · factor, ELECT the disjoint mean. With `target` >= 0 the result
    is leaf `target` + λ·that. outs (λ, bytes); sums (1 + λ + 1): ‖made‖², each ‖stored − exact‖², the last ‖stored‖².
    `work` (`WORK` + operands, `BLOCK`) is room to work in.
    """
    wide, exact, back, total, made, share = work[0], work[1], work[2], work[3], work[4], work[5]
    values = work[6:]
    summed = method == WEIGHTED_SUM and len(masks) == 0 and divisor == 1.0 and factor == 1.0
    in_brain = out_code == BF16 and (target < 0 or codes[target] == BF16)
    two = summed and in_brain and _two_from_target(codes, firsts, terms, signs, target)
    finite = True
    for place in range(len(sums)):
        sums[place] = 0.0
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        left = True
        for number in range(len(scales)):
            plain, outside = False, np.uint32(0)
            if two and left:
                one, other = raws[terms[firsts[0]]], raws[terms[firsts[1]]]
                change, lost, kept, outside = _finish_two_brain(
                    _shorts(one, start, size), _shorts(other, start, size), weights[0], weights[1], scales[number],
                    _shorts(raws[target], start, size), size, _shorts(outs[number], start, size),
                )  # fmt: skip
                plain = outside == 0 and np.isfinite(kept + lost)
            if left and not plain:
                left = False
                ready = _make(
                    raws, codes, firsts, terms, signs, weights, masks, density, method, thresholds, normalize, divisor,
                    factor, start, size, halves, wide, values, share, total, made,
                )  # fmt: skip
                finite = finite and ready
            if in_brain and not plain:
                short = _shorts(outs[number], start, size)
                if target < 0:
                    change, lost, kept, outside = _finish_brain_alone(made, size, short)
                else:
                    base = _shorts(raws[target], start, size)
                    change, lost, kept, outside = _finish_brain(made, scales[number], base, size, short)
                plain = outside == 0 and np.isfinite(kept + lost)
            if not plain:
                if target < 0:
                    for k in range(size):
                        exact[k] = made[k]
                else:
                    _load(raws[target], codes[target], start, size, halves, wide)
                    for k in range(size):
                        exact[k] = made[k] * scales[number] + wide[k]
                _store(exact, out_code, start, size, outs[number], back, wide)
                change, lost, kept = _squares(made, exact, back, size)
                # Both at once: what is stored may overflow, and rounding a NaN on its bits may make a number of it.
                if not np.isfinite(kept + lost):
                    finite = finite and all_finite(back[:size]) and all_finite(exact[:size])
            sums[1 + number] += lost
            if number == 0:
                sums[0] += change
            if number == len(scales) - 1:
                sums[-1] += kept
    return finite


@_exact
def _two_from_target(codes, firsts, terms, signs, target):  # type: ignore[no-untyped-def]
    """Return whether two operands are each one bf16 leaf less the target, which is bf16."""
    if target < 0 or len(firsts) != 3:
        return False
    for j in range(2):
        first = firsts[j]
        if firsts[j + 1] - first != 2 or terms[first + 1] != target or codes[terms[first]] != BF16:
            return False
        if signs[first] < 0 or signs[first + 1] > 0:
            return False
    return True


@_exact
def _make(  # type: ignore[no-untyped-def]
    raws, codes, firsts, terms, signs, weights, masks, density, method, thresholds, normalize, divisor, factor, start,
    size, halves, wide, values, share, total, made,
):  # fmt: skip
    """Write what the method makes of the operands' block into `made`; return whether what it passes over is finite."""
    finite = True
    if method == WEIGHTED_SUM and len(masks) == 0:
        for j in range(len(weights)):
            first, last = firsts[j], firsts[j + 1]
            _add(raws, codes, first, last, terms, signs, start, size, halves, wide, values[0], weights[j], j, made)
    else:
        for j in range(len(weights)):
            row = values[j]
            _value(raws, codes, firsts[j], firsts[j + 1], terms, signs, start, size, halves, wide, row)
            if len(masks) > 0:
                mask = masks[j, start : start + size]
                for k in range(size):
                    row[k] = row[k] * mask[k] / density
            if method == ELECT:  # an election would pass over NaN in silence
                finite = finite and all_finite(row[:size])
            least = thresholds[j] if len(thresholds) > 0 else 0.0
            _trim_and_add(row, least, weights[j], size, j == 0, total if method == ELECT else made)
        if method == ELECT:
            _elect(values, weights, size, normalize, share, total, made)
    if divisor != 1.0:
        for k in range(size):
            made[k] /= divisor
    if factor != 1.0:
        for k in range(size):
            made[k] *= factor
    return finite


@_exact
def _difference(left, right, size, out):  # type: ignore[no-untyped-def]
    for k in range(size):
        out[k] = _brain(left[k]) - _brain(right[k])


@_exact
def _add_difference(left, right, size, weight, first, total):  # type: ignore[no-untyped-def]
    if first:
        for k in range(size):
            total[k] = (_brain(left[k]) - _brain(right[k])) * weight
    else:
        for k in range(size):
            total[k] += (_brain(left[k]) - _brain(right[k])) * weight


@_exact
def _add_brain(short, size, weight, first, total):  # type: ignore[no-untyped-def]
    if first:
        for k in range(size):
            total[k] = _brain(short[k]) * weight
    else:
        for k in range(size):
            total[k] += _brain(short[k]) * weight


@_exact
def _trim_and_add(row, threshold, weight, size, first, total):  # type: ignore[no-untyped-def]
    """Weigh `row`, without what lies below `threshold`, in place; add it to `total`, or begin that with it."""
    least = np.float32(threshold)
    if first:
        for k in range(size):
            row[k] = (0.0 if np.float32(abs(row[k])) < least else row[k]) * weight
            total[k] = row[k]
    else:
        for k in range(size):
            row[k] = (0.0 if np.float32(abs(row[k])) < least else row[k]) * weight
            total[k] += row[k]


@_exact
def _value(raws, codes, first, last, terms, signs, start, size, halves, wide, out):  # type: ignore[no-untyped-def]
    """Write an operand's values, Σ signs·leaf over terms[first : last], of one block into `out`."""
    one = terms[first]
    if last - first == 2 and signs[first] > 0 and signs[first + 1] < 0:
        two = terms[first + 1]
        if codes[one] == BF16 and codes[two] == BF16:
            _difference(_shorts(raws[one], start, size), _shorts(raws[two], start, size), size, out)
            return
    _load(raws[one], codes[one], start, size, halves, out)
    if signs[first] < 0:
        for k in range(size):
            out[k] = -out[k]
    for place in range(first + 1, last):
        _load(raws[terms[place]], codes[terms[place]], start, size, halves, wide)
        if signs[place] > 0:
            for k in range(size):
                out[k] += wide[k]
        else:
            for k in range(size):
                out[k] -= wide[k]


@_exact
def _add(  # type: ignore[no-untyped-def]
    raws, codes, first, last, terms, signs, start, size, halves, wide, row, weight, number, total
):  # fmt: skip
    """Add weight · an operand's values to `total`, or begin it with them where `number` is 0."""
    one, two = terms[first], terms[last - 1]
    if last - first == 2 and signs[first] > 0 and signs[last - 1] < 0 and codes[one] == BF16 and codes[two] == BF16:
        _add_difference(
            _shorts(raws[one], start, size), _shorts(raws[two], start, size), size, weight, number == 0, total
        )
        return
    if last - first == 1 and signs[first] > 0 and codes[one] == BF16:
        _add_brain(_shorts(raws[one], start, size), size, weight, number == 0, total)
        return
    _value(raws, codes, first, last, terms, signs, start, size, halves, wide, row)
    if number == 0:
        for k in range(size):
            total[k] = row[k] * weight
    else:
        for k in range(size):
            total[k] += row[k] * weight


@_exact
def _shorts(raw, start, size):  # type: ignore[no-untyped-def]
    return raw[2 * start : 2 * (start + size)].view(np.uint16)


@_exact
def _elect(values, weights, size, normalize, share, total, out):  # type: ignore[no-untyped-def]
    """Write the sum of the weighted `values` that have the sign of `total`, their sum, or its mean, into `out`."""
    for j in range(len(weights)):
        row, weight = values[j], abs(weights[j])
        if j == 0:
            for k in range(size):
                agreeing = row[k] if total[k] >= 0.0 else -row[k]
                out[k] = agreeing if agreeing > 0.0 else 0.0
                share[k] = weight if agreeing > 0.0 else 0.0
        else:
            for k in range(size):
                agreeing = row[k] if total[k] >= 0.0 else -row[k]
                out[k] += agreeing if agreeing > 0.0 else 0.0
                share[k] += weight if agreeing > 0.0 else 0.0
    if normalize:
        for k in range(size):
            mean = out[k] / (share[k] if share[k] >= 1e-8 else 1.0)
            out[k] = mean if total[k] >= 0.0 else -mean
    else:
        for k in range(size):
            out[k] = out[k] if total[k] >= 0.0 else -out[k]


@_exact
def values_tile(raws, codes, count, first, last, terms, signs, halves, out, wide):  # type: ignore[no-untyped-def]
    """Write one operand's values, Σ signs·leaf over terms[first : last], into `out` (count,) fp64.

    `wide` (`BLOCK`,) is room to work in.
    """
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        _value(raws, codes, first, last, terms, signs, start, size, halves, wide, out[start : start + size])


@_exact
def keys_between(values, low, high, out, single, inside):  # type: ignore[no-untyped-def]
    """Write the magnitude keys of `values` from `low` to `high` into `out`; return (how many, how many are beyond).

    A key is the bits of |value| in fp32 as an integer: keys sort as magnitudes do. `single` (`BLOCK`,) in fp32 and
    `inside` (`BLOCK`,) in bytes are room to work in.
    """
    bits = single.view(np.int32)
    found = beyond = 0
    width = np.uint32(high - low)
    eight = inside.view(np.uint64)
    for start in range(0, len(values), BLOCK):
        size = min(BLOCK, len(values) - start)
        part = values[start : start + size]
        for k in range(size):
            single[k] = abs(part[k])
        over = np.int32(0)
        for k in range(size):
            over += np.int32(bits[k] > high)
        beyond += over
        for group in range(BLOCK // 8):
            eight[group] = 0
        for k in range(size):
            inside[k] = np.uint32(bits[k] - low) <= width
        for group in range((size + 7) // 8):
            if eight[group]:
                for k in range(8 * group, 8 * group + 8):
                    if inside[k]:
                        out[found] = bits[k]
                        found += 1
    return found, beyond


@_exact
def count_against(values, keys, more, same, single):  # type: ignore[no-untyped-def]
    """Add to `more` and `same` how many of `values` have a magnitude key above each of `keys`, and equal to it.

    `single` (`BLOCK`,) in fp32 is room to work in.
    """
    bits = single.view(np.int32)
    for start in range(0, len(values), BLOCK):
        size = min(BLOCK, len(values) - start)
        part = values[start : start + size]
        for k in range(size):
            single[k] = abs(part[k])
        for place in range(len(keys)):
            key = np.int32(keys[place])
            over = equal = np.int32(0)
            for k in range(size):
                over += np.int32(bits[k] > key)
                equal += np.int32(bits[k] == key)
            more[place] += over
            same[place] += equal


@_exact
def gram_tile(values, out):  # type: ignore[no-untyped-def]
    """Write the dot products of the rows of `values` (operands, count) into `out` (operands, operands)."""
    for i in range(len(values)):
        for j in range(i, len(values)):
            out[i, j] = out[j, i] = _dot(values[i], values[j], values.shape[1])


@_exact
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
