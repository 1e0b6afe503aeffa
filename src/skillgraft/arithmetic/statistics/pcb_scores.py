"""PCB scores: the coefficients β of every element and the smallest that is kept (arXiv 2410.02396, section 3.2).

The scores are softmaxes over whole vectors, of products that are never held: one pass finds their extremes, one their
denominators, as integers, and further ones the k-th largest score. The definitions run on NumPy arrays and on Torch
tensors and give the same bits; `fast_numerators` and the sums of the second pass are compiled on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from skillgraft.arithmetic.arrays import Array, is_numpy
from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.plan_types import TensorPlan, tiles_of
from skillgraft.arithmetic.statistics.order_statistics import select
from skillgraft.arithmetic.statistics.sampling import groups_of
from skillgraft.arithmetic.tile_values import finite_values
from skillgraft.arithmetic.tiles import Tile, each_tile
from skillgraft.errors import CompatibilityError

if TYPE_CHECKING:
    from jaxtyping import Float

_TAYLOR = tuple(1.0 / math.factorial(power) for power in range(12, -1, -1))

Pair = tuple[int, int]
"""The places of two vectors, the smaller first."""


@dataclass(frozen=True)
class PcbStatistics:
    """Statistics of N whole vectors for PCB: `numbers` tells which operands they are, in the recipe's order.

    `low` and `high` (N, N) are the extremes of τᵢ⊙τⱼ, `inter` (N, N) and `intra` (N) the softmax denominators, and
    `thresholds` (N) the smallest β of each vector that is kept.
    """

    numbers: tuple[int, ...]
    low: Float[np.ndarray, "n n"]
    high: Float[np.ndarray, "n n"]
    inter: Float[np.ndarray, "n n"]
    intra: Float[np.ndarray, " n"]
    thresholds: tuple[float, ...] = ()


def kept_rank(elements: int, ratio: float) -> int:
    """Return how many elements of a vector are kept: those from ⌊(1 − r)·D⌋ on in ascending order of β."""
    return max(1, elements - math.floor((1.0 - ratio) * elements))


def exponential(x: Float[Array, " e"]) -> Float[Array, " e"]:
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


def normalised(product: Float[Array, " e"], low: float, high: float) -> Float[Array, " e"]:
    """Return e^(Norm(x) − 1) with Norm(x) = (x − low)/(high − low), 0 for a constant: a softmax before its division."""
    width = high - low
    return exponential((product - low) / width - 1.0) if width > 0 else exponential(product * 0.0 - 1.0)


def numerators(
    vectors: Sequence[Float[Array, " e"]], low: Float[np.ndarray, "n n"], high: Float[np.ndarray, "n n"]
) -> dict[Pair, Float[Array, " e"]]:
    """Return `normalised` of τᵢ⊙τⱼ for each pair i ≤ j."""
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i, len(vectors))]
    return {(i, j): normalised(vectors[i] * vectors[j], float(low[i, j]), float(high[i, j])) for i, j in pairs}


def fast_numerators(
    vectors: Sequence[Float[Array, " e"]], low: Float[np.ndarray, "n n"], high: Float[np.ndarray, "n n"]
) -> dict[Pair, Float[Array, " e"]]:
    """Return what `numerators` returns, the same bits: compiled for NumPy arrays, 8 times as fast."""
    if not is_numpy(vectors[0]):
        return numerators(vectors, low, high)
    exponentials = {}
    for i, one in enumerate(vectors):
        for j in range(i, len(vectors)):
            least, most = float(low[i, j]), float(high[i, j])
            if most > least:
                exponentials[i, j] = np.empty_like(one)
                native.softmax_numerators(one, vectors[j], least, most - least, exponentials[i, j])
            else:
                exponentials[i, j] = normalised(one, least, most)
    return exponentials


def power(base: Float[Array, " e"], exponent: int) -> Float[Array, " e"]:
    """Return base^exponent by multiplication: e^(N·x) = (e^x)^N."""
    total = base
    for _ in range(exponent - 1):
        total = total * base
    return total


def scores(exponentials: Mapping[Pair, Float[Array, " e"]], statistics: PcbStatistics) -> list[Float[Array, " e"]]:
    """Return βᵢ = Softmax(N·Norm(τᵢ⊙τᵢ)) ⊙ Σⱼ Softmax(Norm(τᵢ⊙τⱼ)) of each of N vectors, from their `numerators`.

    Norm brings the smallest element of the whole vector to 0 and its largest to 1.
    """
    number, betas = len(statistics.numbers), []
    for i in range(number):
        pairs = [(min(i, j), max(i, j)) for j in range(number)]
        between = exponentials[pairs[0]] / float(statistics.inter[pairs[0]])
        for pair in pairs[1:]:
            between = between + exponentials[pair] / float(statistics.inter[pair])
        betas.append(power(exponentials[i, i], number) / float(statistics.intra[i]) * between)
    return betas


def rows_of(
    numbers: Sequence[int], present: Sequence[int], values: Sequence[Float[Array, " e"]]
) -> list[Float[Array, " e"]]:
    """Return the values of the operands `numbers`, zeros for those that are not `present`."""
    by_number = dict(zip(present, values, strict=True))
    zeros = values[0] * 0.0
    return [by_number.get(number, zeros) for number in numbers]


def exact_sum(values: Float[np.ndarray, " e"]) -> int:
    """Return Σ values in units of 2⁻⁶⁰, for at most 2²⁰ values from 0 to 1: the same in any order and any parts."""
    scaled = values * 2.0**30
    whole = np.floor(scaled)
    rest = np.rint((scaled - whole) * 2.0**30)  # sums of integers below 2^53 are exact
    return (int(whole.sum()) << 30) + int(rest.sum())


def fast_exact_sum(values: Float[np.ndarray, " e"]) -> int:
    """Return what `exact_sum` returns, compiled."""
    whole, rest = native.exact_sum(values)
    return (int(whole) << 30) + int(rest)


def pcb_statistics(
    tensors: Sequence[TensorPlan], ratio: float, scope: str, thread_buffers: Sequence[Buffers]
) -> dict[str, PcbStatistics]:
    """Return by tensor name the statistics for PCB: of each tensor apart, or, with the scope `model`, of whole vectors.

    The largest share `ratio` of a vector's scores is kept. Raises `CompatibilityError` for elements whose products
    overflow fp64.
    """
    with Files() as files:
        if scope == "model":
            numbers = tuple(sorted({operand.number for tensor in tensors for operand in tensor.operands}))
            whole = dict.fromkeys((tensor.spec.name for tensor in tensors), numbers)
            return _gather(tensors, whole, dict.fromkeys(whole, "model"), ratio, thread_buffers, files)
        by_tensor: dict[str, PcbStatistics] = {}
        for group in groups_of(tensors):
            apart = {tensor.spec.name: tuple(operand.number for operand in tensor.operands) for tensor in group}
            by_tensor |= _gather(group, apart, {name: name for name in apart}, ratio, thread_buffers, files)
        return by_tensor


def _gather(
    tensors: Sequence[TensorPlan],
    numbers: dict[str, tuple[int, ...]],
    population: dict[str, str],
    ratio: float,
    thread_buffers: Sequence[Buffers],
    files: Files,
) -> dict[str, PcbStatistics]:
    """Return the statistics of each tensor; those with one `population` are one vector, 0 where it has no operand."""
    lock = Lock()
    members = {population[name]: of_tensor for name, of_tensor in numbers.items()}
    sizes: dict[str, int] = dict.fromkeys(members, 0)
    shapes = {name: (len(of_population), len(of_population)) for name, of_population in members.items()}
    low = {name: np.full(shape, np.inf) for name, shape in shapes.items()}
    high = {name: np.full(shape, -np.inf) for name, shape in shapes.items()}
    inter = {name: np.zeros(shape, dtype=object) for name, shape in shapes.items()}
    intra = {name: np.zeros(shape[0], dtype=object) for name, shape in shapes.items()}

    def rows(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> list[np.ndarray]:
        present, values = finite_values(tensor, tile, buffers, files)
        if not present:
            return []
        return rows_of(numbers[tensor.spec.name], [operand.number for operand in present], list(values))

    def extremes(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
        vectors, name = rows(tensor, tile, buffers), population[tensor.spec.name]
        with np.errstate(over="ignore"):  # refused below
            products = [(i, j, vectors[i] * vectors[j]) for i in range(len(vectors)) for j in range(i, len(vectors))]
        ends = [(i, j, product.min(), product.max()) for i, j, product in products]
        with lock:
            sizes[name] += tile.stop - tile.start if vectors else 0
            for i, j, least, most in ends:
                low[name][i, j], high[name][i, j] = min(low[name][i, j], least), max(high[name][i, j], most)

    def denominators(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
        vectors, name = rows(tensor, tile, buffers), population[tensor.spec.name]
        exponentials = fast_numerators(vectors, low[name], high[name]) if vectors else {}
        between = {pair: fast_exact_sum(values) for pair, values in exponentials.items()}
        within = [fast_exact_sum(power(exponentials[i, i], len(vectors))) for i in range(len(vectors))]
        with lock:
            for pair, total in between.items():
                inter[name][pair] += total
            for i, total in enumerate(within):
                intra[name][i] += total

    each_tile(tiles_of(tensors), extremes, thread_buffers)
    for name, size in sizes.items():
        if size and not np.isfinite(np.triu(high[name]) - np.triu(low[name])).all():
            raise CompatibilityError(
                f"tensor {next(tensor for tensor, of in population.items() if of == name)!r}: products of its elements "
                "overflow fp64; expected smaller weights: no coefficient can be computed"
            )
    each_tile(tiles_of(tensors), denominators, thread_buffers)
    statistics = {
        name: PcbStatistics(of_population, low[name], high[name], _as_floats(inter[name]), _as_floats(intra[name]))
        for name, of_population in members.items()
    }

    def scored(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> Iterator[tuple[Hashable, np.ndarray]]:
        vectors, name = rows(tensor, tile, buffers), population[tensor.spec.name]
        if vectors:
            betas = scores(fast_numerators(vectors, low[name], high[name]), statistics[name])
            yield from (((name, place), beta) for place, beta in enumerate(betas))

    elements: dict[Hashable, int] = {
        (name, place): sizes[name] for name, of_population in members.items() for place in range(len(of_population))
    }
    ranks = {key: [kept_rank(size, ratio)] for key, size in elements.items()}
    edges = select(tensors, ranks, elements, scored, thread_buffers)
    for name, of_population in members.items():
        thresholds = tuple(edges[name, place][0] for place in range(len(of_population)))
        statistics[name] = replace(statistics[name], thresholds=thresholds)
    return {name: statistics[population[name]] for name in numbers}


def _as_floats(units: np.ndarray) -> np.ndarray:
    """Return sums in units of 2⁻⁶⁰ as fp64 numbers, each rounded once."""
    return np.array([unit / (1 << 60) for unit in units.flat], dtype=np.float64).reshape(units.shape)
