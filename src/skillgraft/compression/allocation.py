"""Allocation of a budget of bytes to the directions and elements that hold the most energy per byte, over all tensors.

Keeping x costs c(x) bytes and leaves e(x)·loss of its energy unexplained; dropping it leaves all of it. With a price λ
per byte every direction and element takes the option of the least loss + λ·cost, and λ is the least price at which the
total fits the budget (Lagrangian relaxation, Everett 1963; for one option it is the greedy order by energy per byte).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float64, Int64

BINS = 1 << 15
SHIFT = 16


class Option(NamedTuple):
    """A way to keep one direction: the label it is known by, its bytes, the share of its energy that is lost."""

    label: int
    cost: float
    loss: float


@dataclass(frozen=True)
class Directions:
    """The squared singular values of a matrix, the largest first, and the ways to keep one of them."""

    energies: Float64[np.ndarray, " side"]
    options: Sequence[Option]
    most: float = math.inf
    """Bytes that all of the matrix takes at most, stored some other way."""

    def taken(self, price: float) -> dict[int, int]:
        """Return how many directions take each option; those that take none are dropped."""
        best = self.energies.copy()
        choice = np.full(len(best), -1)
        for number, option in enumerate(self.options):
            value = self.energies * option.loss + price * option.cost
            choice[value < best] = number
            best = np.minimum(best, value)
        counts = {option.label: int((choice == number).sum()) for number, option in enumerate(self.options)}
        return {label: count for label, count in counts.items() if count}

    def cost(self, price: float) -> float:
        """Return the bytes at a price."""
        taken = self.taken(price)
        return min(self.most, sum(option.cost * taken.get(option.label, 0) for option in self.options))

    def lost(self, price: float) -> float:
        """Return the energy that stays unexplained at a price."""
        taken, begin, total = self.taken(price), 0, 0.0
        for option in self.options:
            end = begin + taken.get(option.label, 0)
            total += option.loss * float(self.energies[begin:end].sum())
            begin = end
        return total + float(self.energies[begin:].sum())


@dataclass(frozen=True)
class Elements:
    """Histogram of a tensor's elements by magnitude, with energies; a bin is the fp32 bits of |x| without the last 16.

    What is kept is stored in full.
    """

    counts: Int64[np.ndarray, " bins"]
    energies: Float64[np.ndarray, " bins"]
    cost_each: float
    most_index: float
    """Bytes that the index takes at most."""

    index_each: float = 2.0

    def threshold(self, price: float) -> float:
        """Return the least magnitude that is worth its bytes."""
        return math.sqrt(price * (self.cost_each + self.index_each))

    def cost(self, price: float) -> float:
        """Return the bytes at a price: of all bins that reach above the threshold."""
        count = float(self.counts[self._bin(price) :].sum())
        return self.cost_each * count + min(self.index_each * count, self.most_index)

    def lost(self, price: float) -> float:
        """Return the energy that stays unexplained at a price."""
        return float(self.energies[: self._bin(price)].sum())

    def _bin(self, price: float) -> int:
        return int(np.float32(self.threshold(price)).view(np.uint32)) >> SHIFT


@dataclass(frozen=True)
class Either:
    """Two ways to keep one tensor; at every price the one of the lesser loss + price · cost is taken."""

    one: Elements
    other: Directions

    def taken_at(self, price: float) -> Elements | Directions:
        """Return the way that is taken at a price."""
        ways: tuple[Elements | Directions, ...] = (self.one, self.other)
        return min(ways, key=lambda part: part.lost(price) + price * part.cost(price))

    def cost(self, price: float) -> float:
        """Return the bytes at a price."""
        return self.taken_at(price).cost(price)


def magnitudes(values: np.ndarray) -> tuple[Int64[np.ndarray, " bins"], Float64[np.ndarray, " bins"]]:
    """Return the numbers and energies of fp32 values by bin, for `Elements`; zeros are not counted."""
    keys = np.abs(values).view(np.uint32) >> SHIFT
    counts = np.bincount(keys, minlength=BINS)
    counts[0] -= np.count_nonzero(values == 0)
    return counts, np.bincount(keys, weights=np.square(values, dtype=np.float64), minlength=BINS)


def price_for(parts: Mapping[str, Directions | Elements | Either], budget: float) -> float | None:
    """Return the least price at which all parts fit `budget` bytes; 0 where everything does, None where nothing."""

    def total(price: float) -> float:
        return sum(part.cost(price) for part in parts.values())

    if total(0.0) <= budget:
        return 0.0
    low, high = 0.0, 1.0
    while total(high) > budget:
        low, high = high, high * 16
        if high > 1e300:
            return None
    if low == 0.0:
        low = high
        while total(low) <= budget and low > 1e-300:
            low /= 16
    for _ in range(80):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if total(middle) <= budget else (middle, high)
    return high
