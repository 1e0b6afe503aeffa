"""PCB-Merging: coefficients per parameter from competition within and between tasks (arXiv 2410.02396, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from skillgraft.arithmetic.methods.arrays import weighted_sum

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

_TAYLOR = tuple(1.0 / math.factorial(power) for power in range(12, -1, -1))


@dataclass(frozen=True)
class PcbStatistics:
    """What PCB must know of N whole vectors: `numbers` tells which operands they are, in the recipe's order.

    `low` and `high` (N, N) are the extremes of τᵢ⊙τⱼ, `inter` (N, N) and `intra` (N) the softmax denominators, and
    `thresholds` (N) the smallest β of each vector that is kept.
    """

    numbers: tuple[int, ...]
    low: Float[ndarray, "n n"]
    high: Float[ndarray, "n n"]
    inter: Float[ndarray, "n n"]
    intra: Float[ndarray, " n"]
    thresholds: tuple[float, ...] = ()


def kept_rank(elements: int, ratio: float) -> int:
    """Return how many elements of a vector are kept: those from ⌊(1 − r)·D⌋ on in ascending order of β."""
    return max(1, elements - math.floor((1.0 - ratio) * elements))


def exponential(x: Float[ndarray, " e"]) -> Float[ndarray, " e"]:
    """Return eˣ for −1 ≤ x ≤ 0, its relative error below 1e-15.

    By multiplications and additions alone, so that NumPy, Torch and every processor agree on each bit, as their own
    exponentials do not: eˣ = (e^(x/4))⁴, a Taylor polynomial of degree 12.
    """
    quarter = x * 0.25
    total = quarter * _TAYLOR[0] + _TAYLOR[1]
    for factor in _TAYLOR[2:]:
        total = total * quarter + factor
    square = total * total
    return square * square


def normalised(product: Float[ndarray, " e"], low: float, high: float) -> Float[ndarray, " e"]:
    """Return e^(Norm(x) − 1) with Norm(x) = (x − low)/(high − low), 0 for a constant: a softmax before its division."""
    width = high - low
    return exponential((product - low) / width - 1.0) if width > 0 else exponential(product * 0.0 - 1.0)


def numerators(
    vectors: Sequence[Float[ndarray, " e"]], low: Float[ndarray, "n n"], high: Float[ndarray, "n n"]
) -> dict[tuple[int, int], Float[ndarray, " e"]]:
    """Return `normalised` of τᵢ⊙τⱼ for each pair i ≤ j."""
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i, len(vectors))]
    return {(i, j): normalised(vectors[i] * vectors[j], float(low[i, j]), float(high[i, j])) for i, j in pairs}


def power(base: Float[ndarray, " e"], exponent: int) -> Float[ndarray, " e"]:
    """Return base^exponent by multiplication: e^(N·x) = (e^x)^N."""
    total = base
    for _ in range(exponent - 1):
        total = total * base
    return total


def scores(found: Mapping[tuple[int, int], Float[ndarray, " e"]], balance: PcbStatistics) -> list[Float[ndarray, " e"]]:
    """Return βᵢ = Softmax(N·Norm(τᵢ⊙τᵢ)) ⊙ Σⱼ Softmax(Norm(τᵢ⊙τⱼ)) of each of N vectors; `found` are the numerators.

    Norm brings the smallest element of the whole vector to 0 and its largest to 1.
    """
    number, made = len(balance.numbers), []
    for i in range(number):
        pairs = [(min(i, j), max(i, j)) for j in range(number)]
        between = found[pairs[0]] / float(balance.inter[pairs[0]])
        for pair in pairs[1:]:
            between = between + found[pair] / float(balance.inter[pair])
        made.append(power(found[i, i], number) / float(balance.intra[i]) * between)
    return made


def pcb(
    vectors: Sequence[Float[ndarray, " e"]],
    weights: Sequence[float],
    betas: Sequence[Float[ndarray, " e"]],
    thresholds: Sequence[float],
) -> Float[ndarray, " e"]:
    """Return Σ wᵢ·β̂ᵢ⊙τᵢ / Σ β̂ᵢ, the change to the base: β̂ᵢ is βᵢ where it is not below its threshold, else 0.

    `betas` are the `scores`. 0 where no vector keeps the element. The weights are the paper's λᵢ (one λ for all, or one
    found for each).
    """
    kept = [beta * (beta >= least) for beta, least in zip(betas, thresholds, strict=True)]
    above = weighted_sum([beta * vector for beta, vector in zip(kept, vectors, strict=True)], weights)
    below = weighted_sum(kept, [1.0] * len(vectors))
    return above / (below + (below == 0))


def rows_of(
    numbers: Sequence[int], present: Sequence[int], values: Sequence[Float[ndarray, " e"]]
) -> list[Float[ndarray, " e"]]:
    """Return the values of the operands `numbers`, zeros for those that are not `present`."""
    by_number = dict(zip(present, values, strict=True))
    zeros = values[0] * 0.0
    return [by_number.get(number, zeros) for number in numbers]


def exact_sum(values: Float[ndarray, " e"]) -> int:
    """Return Σ values in units of 2⁻⁶⁰, for at most 2²⁰ values from 0 to 1: the same in any order and any parts."""
    scaled = values * 2.0**30
    whole = np.floor(scaled)
    rest = np.rint((scaled - whole) * 2.0**30)  # sums of integers below 2^53 are exact
    return (int(whole.sum()) << 30) + int(rest.sum())
