"""The k-th largest of scores that are streamed and never held: exact, by counting keys of fp64."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from skillgraft.arithmetic.first_pass import sample_runs
from skillgraft.arithmetic.plan import TensorPlan
from skillgraft.arithmetic.scratch import Scratch
from skillgraft.arithmetic.stream import tiles_of
from skillgraft.arithmetic.tiles import Tile, each_tile

Scored = Callable[[TensorPlan, Tile, Scratch], Iterable[tuple[Hashable, np.ndarray]]]
"""Gives, for one tile, each population that has elements there and their scores, fp64 and not negative."""

LARGEST_KEY = 0x7FF0000000000000
"""The bits of infinity as an integer; those of numbers that are not negative sort as the numbers do."""

BIN_BITS = 20
HELD = 1 << 21
"""Keys that one search holds before it counts them in bins instead."""

SAMPLE = 1 << 19


@dataclass
class Search:
    """The search for the `wanted`-th largest key (from 1), known to lie in `low` … `high`, or guessed to.

    One round holds the keys in the range, or counts them in bins where they are too many, and counts those above.
    `key` is the result once it is certain.
    """

    wanted: int
    low: int = 0
    high: int = LARGEST_KEY
    key: int | None = None
    above: int = 0
    bins: np.ndarray | None = None
    held: list[np.ndarray] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    @property
    def shift(self) -> int:
        """How many low bits the keys of one bin differ in."""
        return max(0, (self.high - self.low).bit_length() - BIN_BITS)

    def add(self, keys: np.ndarray) -> None:
        """Count the keys (int64) of one tile."""
        if self.key is not None:
            return
        beyond = int(np.count_nonzero(keys > self.high))
        inside = keys[(keys >= self.low) & (keys <= self.high)]
        with self.lock:
            self.above += beyond
            self.held.append(inside)
            if sum(map(len, self.held)) > HELD:
                self._count()

    def close_round(self) -> None:
        """Find the key among those held, or narrow the range to its bin, or to the side on which it lies."""
        if self.key is not None:
            return
        low, high = self.low, self.high
        inside = sum(map(len, self.held)) + (int(self.bins.sum()) if self.bins is not None else 0)
        if self.above >= self.wanted:
            low, high = self.high + 1, LARGEST_KEY
        elif self.above + inside < self.wanted:
            low, high = 0, self.low - 1
        elif self.bins is None:
            keys = np.concatenate(self.held)
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
        self.held.clear()

    def guess(self, sample: np.ndarray, elements: int) -> None:
        """Narrow the range to 6 standard errors around the rank in a sample; a wrong guess costs a further round."""
        if len(sample) < 256:
            return
        share = self.wanted / elements
        rank = share * len(sample)
        slack = 6.0 * math.sqrt(len(sample) * share * (1.0 - share)) + 6.0
        order = np.sort(sample)[::-1]
        top, bottom = math.floor(rank - slack), math.ceil(rank + slack)
        self.high = int(order[top]) if top >= 0 else LARGEST_KEY
        self.low = int(order[bottom]) if bottom < len(order) else 0

    def _count(self) -> None:
        if not self.held:
            return
        places = (np.concatenate(self.held) - self.low) >> self.shift
        counted = np.bincount(places, minlength=((self.high - self.low) >> self.shift) + 1)
        self.bins = counted if self.bins is None else self.bins + counted
        self.held.clear()


def select(
    tensors: Sequence[TensorPlan],
    ranks: Mapping[Hashable, Sequence[int]],
    sizes: Mapping[Hashable, int],
    scored: Scored,
    scratches: Sequence[Scratch],
) -> dict[Hashable, list[float]]:
    """Return of each population in `ranks` the scores with these ranks, 1 the largest; `sizes` counts its elements."""
    searches = {name: [Search(rank) for rank in wanted] for name, wanted in ranks.items()}
    samples: dict[Hashable, list[np.ndarray]] = defaultdict(list)

    def look(tensor: TensorPlan, tile: Tile, scratch: Scratch) -> None:
        for name, values in scored(tensor, tile, scratch):
            samples[name].append(_keys(values).copy())

    def visit(tensor: TensorPlan, tile: Tile, scratch: Scratch) -> None:
        for name, values in scored(tensor, tile, scratch):
            keys = _keys(values)
            for search in searches[name]:
                search.add(keys)

    share = min((min(1.0, SAMPLE / max(1, size)) for size in sizes.values()), default=1.0)
    each_tile(sample_runs(tensors, share), look, threads=len(scratches), scratches=scratches)
    for name, found in samples.items():
        for search in searches[name]:
            search.guess(np.concatenate(found), sizes[name])
    every = [search for found in searches.values() for search in found]
    while any(search.key is None for search in every):
        each_tile(tiles_of(tensors), visit, threads=len(scratches), scratches=scratches)
        for search in every:
            search.close_round()
    return {
        name: [float(np.array(search.key, dtype=np.int64).view(np.float64)) for search in found]
        for name, found in searches.items()
    }


def _keys(values: np.ndarray) -> np.ndarray:
    """Return the keys of scores; those of −0 are those of 0."""
    return (values + 0.0).view(np.int64)
