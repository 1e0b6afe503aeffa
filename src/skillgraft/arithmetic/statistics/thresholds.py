"""Magnitude thresholds: the smallest element that is kept where a share of the largest is, of tensors or whole vectors.

Exact order statistics of fp32 magnitudes, found by counting: no tensor is sorted and none is held.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.plan_types import TensorPlan, tiles_of
from skillgraft.arithmetic.statistics.key_search import KeySearch
from skillgraft.arithmetic.statistics.sampling import groups_of, sample_runs
from skillgraft.arithmetic.tile_values import finite_values
from skillgraft.arithmetic.tiles import Tile, each_tile

LARGEST_KEY = 0x7F800000
"""The bits of fp32 infinity as an integer: what fp64 magnitudes beyond its range are counted as."""

GUESSES, MOST_VALUES = 3, 512
"""Keys that a round counts against, and how many different ones a sample's bracket may hold for it to be tried."""

SAMPLE = 1 << 15
"""Elements of a sample."""

_NO_KEYS = np.empty(0, dtype=np.int64)

Populations = Mapping[Hashable, Sequence[tuple[TensorPlan, int]]]
"""The (tensor, position of the operand) pairs whose elements are ranked together, by a key of one's own."""


def magnitude_thresholds(
    tensors: Sequence[TensorPlan], density: float, scope: str, thread_buffers: Sequence[Buffers]
) -> dict[str, list[float]]:
    """Return by tensor name, for each operand, the magnitude (an fp32 number) of the smallest element to be kept.

    The k = max(1, ⌊density · n⌋) largest are kept, and what ties with the last of them: of each tensor, or, with the
    scope `model`, of the whole vector.
    """
    with Files() as files:
        if scope == "tensor":
            by_tensor: dict[str, list[float]] = {}
            for group in groups_of(tensors):
                apart: Populations = {
                    (tensor.spec.name, place): [(tensor, place)]
                    for tensor in group
                    for place in range(len(tensor.operands))
                }
                thresholds = _select(group, apart, density, thread_buffers, files)
                for tensor in group:
                    places = range(len(tensor.operands))
                    by_tensor[tensor.spec.name] = [thresholds[tensor.spec.name, place] for place in places]
            return by_tensor
        by_operand: dict[Hashable, list[tuple[TensorPlan, int]]] = defaultdict(list)
        for tensor in tensors:
            for place, operand in enumerate(tensor.operands):
                by_operand[operand.number].append((tensor, place))
        thresholds = _select(tensors, by_operand, density, thread_buffers, files)
        return {tensor.spec.name: [thresholds[operand.number] for operand in tensor.operands] for tensor in tensors}


def _select(
    tensors: Sequence[TensorPlan],
    populations: Populations,
    density: float,
    thread_buffers: Sequence[Buffers],
    files: Files,
) -> dict[Hashable, float]:
    """Return the threshold of each population."""
    population = {(tensor.spec.name, place): key for key, members in populations.items() for tensor, place in members}
    sizes = {
        key: sum(min(t.operands[place].elements, t.target.elements) for t, place in members)
        for key, members in populations.items()
    }
    searches = {key: MagnitudeSearch(max(1, math.floor(density * size))) for key, size in sizes.items()}
    samples: dict[Hashable, list[np.ndarray]] = defaultdict(list)
    share = {key: min(1.0, SAMPLE / max(1, size)) for key, size in sizes.items()}

    def sample(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
        present, values = finite_values(tensor, tile, buffers, files)
        for operand, row in zip(present, values, strict=True):
            keys = np.abs(row).astype(np.float32).view(np.int32)
            samples[population[tensor.spec.name, tensor.operands.index(operand)]].append(keys)

    def count(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
        present, values = finite_values(tensor, tile, buffers, files)
        for operand, row in zip(present, values, strict=True):
            search = searches[population[tensor.spec.name, tensor.operands.index(operand)]]
            search.add(row, buffers.empty("keys", (len(row),), np.int32))

    least = min(share.values(), default=1.0)
    each_tile(sample_runs(tensors, least), sample, thread_buffers)
    for key, search in searches.items():
        if samples[key]:
            narrow_by_sample(search, np.concatenate(samples[key]), sizes[key])
    while any(search.key is None for search in searches.values()):
        open_names = {name for (name, _), key in population.items() if searches[key].key is None}
        unsettled = (tensor for tensor in tensors if tensor.spec.name in open_names)
        each_tile(tiles_of(unsettled), count, thread_buffers)
        for search in searches.values():
            search.close_round()
    return {key: _magnitude(search.key) for key, search in searches.items() if search.key is not None}


def _magnitude(key: int) -> float:
    """Return the fp32 number with these bits."""
    return float(np.array([key], dtype=np.int32).view(np.float32)[0])


@dataclass
class MagnitudeSearch(KeySearch):
    """The search for one magnitude among keys of fp32.

    Where many keys are equal, as differences of bf16 numbers are, a round only counts against `guesses`, one of which
    is likely the result: `more` above each and the `same`.
    """

    LARGEST = LARGEST_KEY
    HELD = 1 << 20

    guesses: np.ndarray = field(default_factory=lambda: _NO_KEYS)
    more: np.ndarray = field(default_factory=lambda: _NO_KEYS)
    same: np.ndarray = field(default_factory=lambda: _NO_KEYS)

    def add(self, values: np.ndarray, workspace: np.ndarray) -> None:
        """MagnitudeSearch the values of one tile (fp64); `workspace` (int32) is as long."""
        if self.key is not None:
            return
        if len(self.guesses):
            counts = np.zeros((2, len(self.guesses)), dtype=np.int64)
            native.count_against(values, self.guesses, counts[0], counts[1])
            with self.lock:
                self.more, self.same = self.more + counts[0], self.same + counts[1]
            return
        inside, beyond = native.keys_between(values, self.low, self.high, workspace)
        self.take(workspace[:inside].copy(), beyond)

    def close_round(self) -> None:
        """Take the guess that is right, or narrow the range; without guesses, as every search does."""
        if len(self.guesses):
            self._close_guesses()
        else:
            super().close_round()

    def count_against(self, keys: np.ndarray) -> None:
        """MagnitudeSearch against `keys` (sorted) in the next round instead of holding those in the range."""
        self.guesses = keys.astype(np.int64)
        self.more, self.same = np.zeros((2, len(keys)), dtype=np.int64)

    def _close_guesses(self) -> None:
        """Take the guess that is right, or narrow the range to between two of them."""
        for guess, more, same in zip(*(row.tolist() for row in (self.guesses, self.more, self.same)), strict=True):
            if more < self.wanted <= more + same:
                self.key = guess
            elif more >= self.wanted:
                self.low, self.high = guess + 1, self.high if guess < self.high else LARGEST_KEY
            else:
                self.low, self.high = self.low if self.low < guess else 0, guess - 1
                break  # the guesses above are too high as well
        self.guesses = _NO_KEYS


def narrow_by_sample(search: MagnitudeSearch, keys: np.ndarray, elements: int) -> None:
    """Guess the range of a search over `elements` keys from a sample, and the keys themselves where they repeat.

    A wrong guess costs a further round and nothing else.
    """
    bracket = search.guess(keys, elements)
    if bracket is None:
        return
    likely = np.unique(bracket.order[bracket.top : bracket.bottom + 1])
    if len(likely) > MOST_VALUES:
        return
    # How likely each value is the wanted one: the sample's rank errs as a normal number does, `slack` being 6 of it.
    edges = [np.searchsorted(-bracket.order, -likely, side) - bracket.rank for side in ("left", "right")]
    below = np.array([[math.erf(edge / bracket.slack * 6 / math.sqrt(2)) for edge in row] for row in edges])
    likelihood = (below[1] - below[0]) / 2
    best = np.argsort(-likelihood, kind="stable")[:GUESSES]
    if likelihood[best].sum() > 0.5:
        search.count_against(np.sort(likely[best]))
