"""The inner loops on the CPU, compiled by Numba: a tile is read, combined in fp64 and rounded once in a single pass.

Work goes by blocks that stay in a core's cache. The definitions are those of `methods` and `rounding`, and the tests
hold both to the same bits: only what is `loose` may be contracted or reordered, and that serves reports alone.
"""

from __future__ import annotations

import numpy as np

from skillgraft.arithmetic.kernels.codes import BF16, ELECT, WEIGHTED_SUM
from skillgraft.arithmetic.kernels.native import BLOCK
from skillgraft.arithmetic.kernels.rounding import finish_brain, finish_brain_alone, finish_two_brain, store
from skillgraft.arithmetic.kernels.sources import (
    all_finite,
    brain,
    load,
    load_operand,
    shorts,
    strict,
    sums_of_squares,
    two_differences,
)


@strict
def merge_tile(  # type: ignore[no-untyped-def]
    raws, codes, count, firsts, terms, signs, weights, masks, density, method, thresholds, normalize, divisor, factor,
    target, scales, halves, outs, out_code, sums, work,
):  # fmt: skip
    """Combine a tile of `count` elements and write it, rounded, for each λ in `scales`; return whether all is finite.

    raws (sources, bytes) with dtype `codes`; operand j is Σ signs·source over terms[firsts[j] : firsts[j + 1]], masked
    by masks[j] over `density` where masks are given (operands, count); `thresholds` are fp32 magnitudes, none if empty.
    WEIGHTED_SUM makes (Σ weights·operand) / divisor · factor, ELECT the disjoint mean. With `target` >= 0 the result
    is source `target` + λ·that. outs (λ, bytes); sums (1 + λ + 1): ‖combined‖², each
    ‖stored − exact‖², the last ‖stored‖².
    `work` (`WORK` + operands, `BLOCK`) is workspace.
    """
    wide, exact, back, total, combined, share = work[0], work[1], work[2], work[3], work[4], work[5]
    values = work[6:]
    summed = method == WEIGHTED_SUM and len(masks) == 0 and divisor == 1.0 and factor == 1.0
    in_brain = out_code == BF16 and (target < 0 or codes[target] == BF16)
    two = summed and in_brain and two_differences(codes, firsts, terms, signs, target)
    finite = True
    for place in range(len(sums)):
        sums[place] = 0.0
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        left = True
        for number in range(len(scales)):
            plain, outside = False, False
            if two and left:
                one, other = raws[terms[firsts[0]]], raws[terms[firsts[1]]]
                change, loss, stored_squares, outside = finish_two_brain(
                    shorts(one, start, size), shorts(other, start, size), weights[0], weights[1], scales[number],
                    shorts(raws[target], start, size), size, shorts(outs[number], start, size),
                )  # fmt: skip
                plain = not outside and np.isfinite(stored_squares + loss)
            if left and not plain:
                left = False
                ready = _combine(
                    raws, codes, firsts, terms, signs, weights, masks, density, method, thresholds, normalize, divisor,
                    factor, start, size, halves, wide, values, share, total, combined,
                )  # fmt: skip
                finite = finite and ready
            if in_brain and not plain:
                short = shorts(outs[number], start, size)
                if target < 0:
                    change, loss, stored_squares, outside = finish_brain_alone(combined, size, short)
                else:
                    base = shorts(raws[target], start, size)
                    change, loss, stored_squares, outside = finish_brain(combined, scales[number], base, size, short)
                plain = not outside and np.isfinite(stored_squares + loss)
            if not plain:
                if target < 0:
                    for k in range(size):
                        exact[k] = combined[k]
                else:
                    load(raws[target], codes[target], start, size, halves, wide)
                    for k in range(size):
                        exact[k] = combined[k] * scales[number] + wide[k]
                store(exact, out_code, start, size, outs[number], back, wide)
                change, loss, stored_squares = sums_of_squares(combined, exact, back, size)
                # Both at once: what is stored may overflow, and rounding a NaN on its bits may make a number of it.
                if not np.isfinite(stored_squares + loss):
                    finite = finite and all_finite(back[:size]) and all_finite(exact[:size])
            sums[1 + number] += loss
            if number == 0:
                sums[0] += change
            if number == len(scales) - 1:
                sums[-1] += stored_squares
    return finite


@strict
def _combine(  # type: ignore[no-untyped-def]
    raws, codes, firsts, terms, signs, weights, masks, density, method, thresholds, normalize, divisor, factor, start,
    size, halves, wide, values, share, total, combined,
):  # fmt: skip
    """Combine a block of the operands into `combined`; return whether the values that ELECT may skip are finite."""
    finite = True
    if method == WEIGHTED_SUM and len(masks) == 0:
        for j in range(len(weights)):
            first, last = firsts[j], firsts[j + 1]
            _add(raws, codes, first, last, terms, signs, start, size, halves, wide, values[0], weights[j], j, combined)
    else:
        for j in range(len(weights)):
            row = values[j]
            load_operand(raws, codes, firsts[j], firsts[j + 1], terms, signs, start, size, halves, wide, row)
            if len(masks) > 0:
                mask = masks[j, start : start + size]
                for k in range(size):
                    row[k] = row[k] * mask[k] / density
            if method == ELECT:  # an election would pass over NaN in silence
                finite = finite and all_finite(row[:size])
            least = thresholds[j] if len(thresholds) > 0 else 0.0
            _trim_and_add(row, least, weights[j], size, j == 0, total if method == ELECT else combined)
        if method == ELECT:
            _elect(values, weights, size, normalize, share, total, combined)
    if divisor != 1.0:
        for k in range(size):
            combined[k] /= divisor
    if factor != 1.0:
        for k in range(size):
            combined[k] *= factor
    return finite


@strict
def _add_difference(left, right, size, weight, first, total):  # type: ignore[no-untyped-def]
    if first:
        for k in range(size):
            total[k] = (brain(left[k]) - brain(right[k])) * weight
    else:
        for k in range(size):
            total[k] += (brain(left[k]) - brain(right[k])) * weight


@strict
def _add_brain(short, size, weight, first, total):  # type: ignore[no-untyped-def]
    if first:
        for k in range(size):
            total[k] = brain(short[k]) * weight
    else:
        for k in range(size):
            total[k] += brain(short[k]) * weight


@strict
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


@strict
def _add(  # type: ignore[no-untyped-def]
    raws, codes, first, last, terms, signs, start, size, halves, wide, row, weight, number, total
):  # fmt: skip
    """Add weight · an operand's values to `total`, or begin it with them where `number` is 0."""
    one, two = terms[first], terms[last - 1]
    if last - first == 2 and signs[first] > 0 and signs[last - 1] < 0 and codes[one] == BF16 and codes[two] == BF16:
        _add_difference(
            shorts(raws[one], start, size), shorts(raws[two], start, size), size, weight, number == 0, total
        )
        return
    if last - first == 1 and signs[first] > 0 and codes[one] == BF16:
        _add_brain(shorts(raws[one], start, size), size, weight, number == 0, total)
        return
    load_operand(raws, codes, first, last, terms, signs, start, size, halves, wide, row)
    if number == 0:
        for k in range(size):
            total[k] = row[k] * weight
    else:
        for k in range(size):
            total[k] += row[k] * weight


@strict
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


@strict
def keys_between(values, low, high, out, single, inside):  # type: ignore[no-untyped-def]
    """Write the magnitude keys of `values` from `low` to `high` into `out`; return (how many, how many are beyond).

    A key is the bits of |value| in fp32 as an integer: keys sort as magnitudes do. `single` (`BLOCK`,) in fp32 and
    `inside` (`BLOCK`,) in bytes are workspace.
    """
    bits = single.view(np.int32)
    inside_count = beyond = 0
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
                        out[inside_count] = bits[k]
                        inside_count += 1
    return inside_count, beyond


@strict
def count_against(values, keys, more, same, single):  # type: ignore[no-untyped-def]
    """Add to `more` and `same` how many of `values` have a magnitude key above each of `keys`, and equal to it.

    `single` (`BLOCK`,) in fp32 is workspace.
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
