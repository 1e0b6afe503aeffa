"""Order statistics: the k-th largest of scores that are streamed and never held, exact, by counting keys of fp64."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from skillgraft.arithmetic.buffers import Buffers
from skillgraft.arithmetic.plan_types import TensorPlan, tiles_of
from skillgraft.arithmetic.statistics.key_search import KeySearch
from skillgraft.arithmetic.statistics.sampling import sample_runs
from skillgraft.arithmetic.tiles import Tile, each_tile

Scored = Callable[[TensorPlan, Tile, Buffers], Iterable[tuple[Hashable, np.ndarray]]]
"""Gives, for one tile, each population that has elements there and their scores, fp64 and not negative."""

LARGEST_KEY = 0x7FF0000000000000
"""The bits of infinity as an integer; those of numbers that are not negative sort as the numbers do."""

SAMPLE = 1 << 19
"""Elements of a sample."""


class ScoreSearch(KeySearch):
    """The search for one score among keys of fp64."""

    LARGEST = LARGEST_KEY
    HELD = 1 << 21

    def add(self, keys: np.ndarray) -> None:
        """Count the keys (int64) of one tile."""
        if self.key is None:
            inside = keys[(keys >= self.low) & (keys <= self.high)]
            self.take(inside, int(np.count_nonzero(keys > self.high)))


def select(
    tensors: Sequence[TensorPlan],
    ranks: Mapping[Hashable, Sequence[int]],
    sizes: Mapping[Hashable, int],
    scored: Scored,
    thread_buffers: Sequence[Buffers],
) -> dict[Hashable, list[float]]:
    """Return of each population in `ranks` the scores with these ranks, 1 the largest; `sizes` counts its elements."""
    searches = {name: [ScoreSearch(rank) for rank in wanted] for name, wanted in ranks.items()}
    samples: dict[Hashable, list[np.ndarray]] = defaultdict(list)

    def sample(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
        for name, values in scored(tensor, tile, buffers):
            samples[name].append(_keys(values).copy())

    def count(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
        for name, values in scored(tensor, tile, buffers):
            keys = _keys(values)
            for search in searches[name]:
                search.add(keys)

    share = min((min(1.0, SAMPLE / max(1, size)) for size in sizes.values()), default=1.0)
    each_tile(sample_runs(tensors, share), sample, thread_buffers)
    for name, keys in samples.items():
        for search in searches[name]:
            search.guess(np.concatenate(keys), sizes[name])
    every = [search for of_population in searches.values() for search in of_population]
    while any(search.key is None for search in every):
        each_tile(tiles_of(tensors), count, thread_buffers)
        for search in every:
            search.close_round()
    return {
        name: [float(np.array(search.key, dtype=np.int64).view(np.float64)) for search in of_population]
        for name, of_population in searches.items()
    }


def _keys(values: np.ndarray) -> np.ndarray:
    """Return the keys of scores; those of −0 are those of 0."""
    return (values + 0.0).view(np.int64)
