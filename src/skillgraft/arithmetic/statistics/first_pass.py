"""What a method must know of whole tensors before the stream: dot products, and the threshold of a share of elements.

Both stream like the merge itself. Sums are added by `math.fsum` over tiles whose cut depends on the shape alone;
thresholds are exact order statistics, found by counting: no tensor is sorted and none is held.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.cpu_tiles import operand_values
from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.methods.slerp import slerp_weights
from skillgraft.arithmetic.plan import Operand, Plan, TensorPlan
from skillgraft.arithmetic.statistics.key_search import KeySearch
from skillgraft.arithmetic.stream import Machine, not_finite, tiles_of
from skillgraft.arithmetic.tiles import TILE_ELEMENTS, Tile, each_tile
from skillgraft.errors import CompatibilityError

LARGEST_KEY = 0x7F800000
"""The bits of fp32 infinity as an integer: what fp64 magnitudes beyond its range are counted as."""

GUESSES, MOST_VALUES = 3, 512
"""Keys that a round counts against, and how many different ones a sample's bracket may hold for it to be tried."""

_NO_KEYS = np.empty(0, dtype=np.int64)
SAMPLE = 1 << 15
SAMPLE_RUN = 2048
"""Elements of a sample, and how many of them lie side by side."""


def gather_facts(plan: Plan, machine: Machine) -> dict[str, Any]:
    """Return what the plan's method must know of each changed tensor, by name; nothing for most methods."""
    tensors = [tensor for tensor in plan.tensors if tensor.operands]
    if plan.method.first_pass == "gram":
        grams = _gram(tensors, machine)
        if plan.method.name == "slerp":
            _check_angles(grams, plan.parameters.t)
        return grams
    if plan.method.first_pass == "thresholds":
        return _thresholds(plan, tensors, machine)
    if plan.method.first_pass is not None:
        from skillgraft.arithmetic.statistics.score_pass import PASSES  # which is made of this module's parts

        return PASSES[plan.method.first_pass](plan, machine)
    return {}


def _check_angles(grams: dict[str, list[list[float]]], t: float) -> None:
    for name, ((aa, ab), (_, bb)) in grams.items():
        try:
            slerp_weights(t, ab, aa**0.5, bb**0.5)
        except ValueError as error:
            raise CompatibilityError(f"tensor {name!r}: {error}; merge with linear, or leave one model out") from error


def finite_values(tensor: TensorPlan, tile: Tile, buffers: Buffers, files: Files) -> tuple[list[Operand], np.ndarray]:
    """Return the operands that have this tile, and their finite values (operands, count) in fp64."""
    present = [operand for operand in tensor.operands if tile.stop <= operand.elements]
    values = operand_values(tensor, present, tile, buffers, files) if present else np.empty((0, 0))
    for row, operand in enumerate(present):
        if not native.all_finite(values[row]):
            raise not_finite(tensor, [operand], tile, (), buffers, files)
    return present, values


def _gram(tensors: Sequence[TensorPlan], machine: Machine) -> dict[str, list[list[float]]]:
    """Return the matrix of dot products of the operands of each tensor."""
    sums: dict[tuple[str, int, int], list[float]] = defaultdict(list)
    with Files() as files:

        def visit(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
            present, values = finite_values(tensor, tile, buffers, files)
            if len(present) < len(tensor.operands):
                return  # rows that not every operand has take no part
            products = buffers.empty("products", (len(present), len(present)))
            native.gram_tile(values, products)
            places = [tensor.operands.index(operand) for operand in present]
            for row, i in enumerate(places):
                for column, j in enumerate(places[row:], start=row):
                    sums[tensor.spec.name, i, j].append(float(products[row, column]))

        each_tile(tiles_of(tensors), visit, machine.thread_buffers())
    for (name, _, _), parts in sums.items():
        if not math.isfinite(math.fsum(parts)):
            raise CompatibilityError(
                f"tensor {name!r}: the squares of its elements overflow fp64; expected smaller weights: no angle can "
                "be computed"
            )
    return {
        tensor.spec.name: [
            [math.fsum(sums[tensor.spec.name, min(i, j), max(i, j)]) for j in range(len(tensor.operands))]
            for i in range(len(tensor.operands))
        ]
        for tensor in tensors
    }


@dataclass
class Count(KeySearch):
    """The search for one magnitude among the keys of fp32.

    Where many keys are equal, as differences of bf16 numbers are, a round only counts against `guesses`, one of which
    is likely the result: `more` above each and the `same`.
    """

    LARGEST = LARGEST_KEY
    HELD = 1 << 20

    guesses: np.ndarray = field(default_factory=lambda: _NO_KEYS)
    more: np.ndarray = field(default_factory=lambda: _NO_KEYS)
    same: np.ndarray = field(default_factory=lambda: _NO_KEYS)

    def add(self, values: np.ndarray, room: np.ndarray) -> None:
        """Count the values of one tile (fp64); `room` (int32) is as long."""
        if self.key is not None:
            return
        if len(self.guesses):
            counted = np.zeros((2, len(self.guesses)), dtype=np.int64)
            native.count_against(values, self.guesses, counted[0], counted[1])
            with self.lock:
                self.more, self.same = self.more + counted[0], self.same + counted[1]
            return
        found, beyond = native.keys_between(values, self.low, self.high, room)
        self.take(room[:found].copy(), beyond)

    def close_round(self) -> None:
        """Take the guess that is right, or go on between two of them; without guesses as every search does."""
        if len(self.guesses):
            self._close_guesses()
        else:
            super().close_round()

    def count_against(self, keys: np.ndarray) -> None:
        """Count against `keys` (sorted) in the next round instead of holding those in the range."""
        self.guesses = keys.astype(np.int64)
        self.more, self.same = np.zeros((2, len(keys)), dtype=np.int64)

    def _close_guesses(self) -> None:
        """Take the guess that is right, or go on between two of them."""
        for guess, more, same in zip(*(row.tolist() for row in (self.guesses, self.more, self.same)), strict=True):
            if more < self.wanted <= more + same:
                self.key = guess
            elif more >= self.wanted:
                self.low, self.high = guess + 1, self.high if guess < self.high else LARGEST_KEY
            else:
                self.low, self.high = self.low if self.low < guess else 0, guess - 1
                break  # the guesses above are too high as well
        self.guesses = _NO_KEYS


def narrow_by_sample(count: Count, keys: np.ndarray, elements: int) -> None:
    """Guess the range of a count over `elements` keys from a sample of them, and the keys themselves where they repeat.

    A wrong guess costs a further round and nothing else.
    """
    found = count.guess(keys, elements)
    if found is None:
        return
    likely = np.unique(found.order[found.top : found.bottom + 1])
    if len(likely) > MOST_VALUES:
        return
    # How likely each value is the wanted one: the sample's rank errs as a normal number does, `slack` being 6 of it.
    edges = [np.searchsorted(-found.order, -likely, side) - found.rank for side in ("left", "right")]
    below = np.array([[math.erf(edge / found.slack * 6 / math.sqrt(2)) for edge in row] for row in edges])
    likelihood = (below[1] - below[0]) / 2
    best = np.argsort(-likelihood, kind="stable")[:GUESSES]
    if likelihood[best].sum() > 0.5:
        count.count_against(np.sort(likely[best]))


def _thresholds(plan: Plan, tensors: Sequence[TensorPlan], machine: Machine) -> dict[str, list[float]]:
    """Return per tensor the magnitude (an fp32 number) of the smallest element to be kept of each of its operands.

    The k = max(1, ⌊density · n⌋) largest are kept, and what ties with the last of them: of each tensor, or, with
    `scope: model`, of the whole vector.
    """
    density, thread_buffers = plan.parameters.density, machine.thread_buffers()
    with Files() as files:
        if plan.parameters.scope == "tensor":
            found: dict[str, list[float]] = {}
            for group in groups_of(tensors):
                places = {
                    (tensor.spec.name, place): [(tensor, place)]
                    for tensor in group
                    for place in range(len(tensor.operands))
                }
                counts = _select(group, places, density, thread_buffers, files)
                for tensor in group:
                    found[tensor.spec.name] = [counts[tensor.spec.name, place] for place in range(len(tensor.operands))]
            return found
        by_operand: dict[Any, list[tuple[TensorPlan, int]]] = defaultdict(list)
        for tensor in tensors:
            for place, operand in enumerate(tensor.operands):
                by_operand[operand.number].append((tensor, place))
        counts = _select(tensors, by_operand, density, thread_buffers, files)
        return {tensor.spec.name: [counts[operand.number] for operand in tensor.operands] for tensor in tensors}


def _magnitude(key: int) -> float:
    """Return the fp32 number with these bits."""
    return float(np.array([key], dtype=np.int32).view(np.float32)[0])


def groups_of(tensors: Iterable[TensorPlan], elements: int = 16 * TILE_ELEMENTS) -> Iterator[list[TensorPlan]]:
    """Yield runs of tensors of about `elements` elements in all, so that small tensors share the threads."""
    group: list[TensorPlan] = []
    for tensor in tensors:
        group.append(tensor)
        if sum(t.target.elements for t in group) >= elements or len(group) >= 256:
            yield group
            group = []
    if group:
        yield group


def _select(
    tensors: Sequence[TensorPlan],
    places: dict[Any, list[tuple[TensorPlan, int]]],
    density: float,
    thread_buffers: list[Buffers],
    files: Files,
) -> dict[Any, float]:
    """Return the threshold of each population in `places`: (tensor, position of the operand) pairs."""
    population = {(tensor.spec.name, place): key for key, members in places.items() for tensor, place in members}
    sizes = {
        key: sum(min(t.operands[place].elements, t.target.elements) for t, place in members)
        for key, members in places.items()
    }
    counts = {key: Count(max(1, math.floor(density * size))) for key, size in sizes.items()}
    samples: dict[Any, list[np.ndarray]] = defaultdict(list)
    share = {key: min(1.0, SAMPLE / max(1, size)) for key, size in sizes.items()}

    def look(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
        present, values = finite_values(tensor, tile, buffers, files)
        for operand, row in zip(present, values, strict=True):
            keys = np.abs(row).astype(np.float32).view(np.int32)
            samples[population[tensor.spec.name, tensor.operands.index(operand)]].append(keys)

    def visit(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
        present, values = finite_values(tensor, tile, buffers, files)
        for operand, row in zip(present, values, strict=True):
            count = counts[population[tensor.spec.name, tensor.operands.index(operand)]]
            count.add(row, buffers.empty("keys", (len(row),), np.int32))

    least = min(share.values(), default=1.0)
    each_tile(sample_runs(tensors, least), look, thread_buffers)
    for key, count in counts.items():
        if samples[key]:
            narrow_by_sample(count, np.concatenate(samples[key]), sizes[key])
    while any(count.key is None for count in counts.values()):
        open_names = {name for (name, _), key in population.items() if counts[key].key is None}
        unsettled = (tensor for tensor in tensors if tensor.spec.name in open_names)
        each_tile(tiles_of(unsettled), visit, thread_buffers)
        for count in counts.values():
            count.close_round()
    return {key: _magnitude(count.key) for key, count in counts.items() if count.key is not None}


def sample_runs(tensors: Sequence[TensorPlan], share: float) -> Iterator[tuple[TensorPlan, Tile]]:
    """Yield short pieces spread evenly over every tensor, `share` of its elements in all."""
    for tensor in tensors:
        wanted = share * tensor.target.elements
        if wanted < SAMPLE_RUN // 8:
            continue
        number = max(1, round(wanted / SAMPLE_RUN))
        step = tensor.target.elements / number
        for index in range(number):
            start = int(index * step)
            stop = min(start + SAMPLE_RUN, int((index + 1) * step), tensor.target.elements)
            if all(not start < b < stop for b in tensor.breaks) and stop > start:
                yield tensor, Tile(start, stop)
