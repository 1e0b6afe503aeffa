"""Search for an order statistic among keys that are streamed several times and never held together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from threading import Lock
from typing import ClassVar, NamedTuple

import numpy as np

BIN_BITS = 20


class Bracket(NamedTuple):
    """The range in which a sample puts the wanted key: `order[top : bottom + 1]`, the largest first, near `rank`."""

    order: np.ndarray
    rank: float
    slack: float
    top: int
    bottom: int


@dataclass
class KeySearch:
    """The search for the `wanted`-th largest key (from 1), known to lie in `low` … `high` (inclusive), or guessed to.

    One round holds the keys in the range as `pending`, or counts them in `bins` of 2^`shift` keys each where they are
    more than `HELD`, and counts in `above` those beyond it. `key` is the result once it is certain.
    """

    LARGEST: ClassVar[int]
    """The largest key that there is."""
    HELD: ClassVar[int]

    wanted: int
    low: int = 0
    high: int = -1
    key: int | None = None
    above: int = 0
    bins: np.ndarray | None = None
    pending: list[np.ndarray] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        if self.high < 0:
            self.high = self.LARGEST

    @property
    def shift(self) -> int:
        """The number of low bits in which the keys of one bin differ."""
        return max(0, (self.high - self.low).bit_length() - BIN_BITS)

    def take(self, inside: np.ndarray, beyond: int) -> None:
        """Take the keys of one tile that lie in the range, and how many lie beyond it."""
        with self.lock:
            self.above += beyond
            self.pending.append(inside)
            if sum(map(len, self.pending)) > self.HELD:
                self._count()

    def close_round(self) -> None:
        """Find the key among those held, or narrow the range to its bin, or to the side on which it lies."""
        if self.key is not None:
            return
        low, high = self.low, self.high
        inside = sum(map(len, self.pending)) + (int(self.bins.sum()) if self.bins is not None else 0)
        if self.above >= self.wanted:
            low, high = self.high + 1, self.LARGEST
        elif self.above + inside < self.wanted:
            low, high = 0, self.low - 1
        elif self.bins is None:
            keys = np.concatenate(self.pending)
            place = len(keys) - (self.wanted - self.above)
            self.key = int(np.partition(keys, place)[place])
        else:
            self._count()
            from_top = self.above + np.cumsum(self.bins[::-1])
            place = len(self.bins) - 1 - int(np.searchsorted(from_top, self.wanted))
            low = self.low + (place << self.shift)
            high = min(low + (1 << self.shift) - 1, self.high)
            self.key = low if low == high else None
        self.low, self.high, self.above, self.bins = low, high, 0, None
        self.pending.clear()

    def guess(self, sample: np.ndarray, elements: int) -> Bracket | None:
        """Narrow the range to 6 standard errors around the rank in a sample of `elements` keys, and return what it is.

        A wrong guess costs a further round and nothing else. None, and no change, for a sample that is too small.
        """
        if len(sample) < 256:
            return None
        share = self.wanted / elements
        rank = share * len(sample)
        slack = 6.0 * math.sqrt(len(sample) * share * (1.0 - share)) + 6.0
        order = np.sort(sample)[::-1]
        top, bottom = math.floor(rank - slack), math.ceil(rank + slack)
        self.high = int(order[top]) if top >= 0 else self.LARGEST
        self.low = int(order[bottom]) if bottom < len(order) else 0
        return Bracket(order, rank, slack, max(top, 0), bottom)

    def _count(self) -> None:
        if not self.pending:
            return
        places = (np.concatenate(self.pending) - self.low) >> self.shift
        counted = np.bincount(places, minlength=((self.high - self.low) >> self.shift) + 1)
        self.bins = counted if self.bins is None else self.bins + counted
        self.pending.clear()
