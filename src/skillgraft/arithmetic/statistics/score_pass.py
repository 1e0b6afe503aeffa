"""What the sparsifying methods must know of whole tensors, layers or vectors, streamed like the merge itself.

Extremes, integer sums and exact order statistics: no tile, thread or shard changes a bit of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.methods.breadcrumbs import band_ranks
from skillgraft.arithmetic.methods.mediator import LayerConflict, count_conflicts, judge, layer_of
from skillgraft.arithmetic.methods.pcb import PcbStatistics, kept_rank, power, rows_of, scores
from skillgraft.arithmetic.plan import Plan, TensorPlan
from skillgraft.arithmetic.softmax_tiles import exact_sum, numerators
from skillgraft.arithmetic.statistics.first_pass import finite_values, groups_of
from skillgraft.arithmetic.statistics.order_statistics import select
from skillgraft.arithmetic.stream import Machine, tiles_of
from skillgraft.arithmetic.tiles import Tile, each_tile
from skillgraft.errors import CompatibilityError


def bands(plan: Plan, machine: Machine) -> dict[str, list[tuple[float, float]]]:
    """Return per tensor and operand the largest and the smallest magnitude that breadcrumbs keeps."""
    found: dict[str, list[tuple[float, float]]] = {}
    thread_buffers = machine.thread_buffers()
    with Files() as files:

        def scored(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> Iterator[tuple[Hashable, np.ndarray]]:
            present, values = finite_values(tensor, tile, buffers, files)
            for operand, row in zip(present, values, strict=True):
                yield (tensor.spec.name, tensor.operands.index(operand)), np.abs(row)

        for group in groups_of(_changed(plan)):
            sizes: dict[Hashable, int] = {
                (tensor.spec.name, place): min(operand.elements, tensor.target.elements)
                for tensor in group
                for place, operand in enumerate(tensor.operands)
            }
            parameters = plan.parameters
            ranks = {key: band_ranks(size, parameters.beta, parameters.gamma) for key, size in sizes.items()}
            made = select(group, ranks, sizes, scored, thread_buffers)
            for tensor in group:
                edges = [made[tensor.spec.name, place] for place in range(len(tensor.operands))]
                found[tensor.spec.name] = [(most, least) for most, least in edges]
    return found


def balances(plan: Plan, machine: Machine) -> dict[str, PcbStatistics]:
    """Return per tensor what PCB must know: of each tensor apart, or, with `scope: model`, of the whole vectors."""
    changed = _changed(plan)
    with Files() as files:
        if plan.parameters.scope == "model":
            numbers = tuple(sorted({operand.number for tensor in changed for operand in tensor.operands}))
            whole = dict.fromkeys((tensor.spec.name for tensor in changed), numbers)
            return _balance(changed, whole, dict.fromkeys(whole, "model"), plan.parameters.ratio, machine, files)
        found: dict[str, PcbStatistics] = {}
        for group in groups_of(changed):
            apart = {tensor.spec.name: tuple(operand.number for operand in tensor.operands) for tensor in group}
            found |= _balance(group, apart, {name: name for name in apart}, plan.parameters.ratio, machine, files)
        return found


def conflicts(plan: Plan, machine: Machine) -> dict[str, tuple[LayerConflict, float]]:
    """Return per tensor the conflict of its layer and the sum of all operands' weights, for Mediator."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    lock = Lock()
    changed = _changed(plan)
    with Files() as files:

        def visit(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
            present, values = finite_values(tensor, tile, buffers, files)
            if not present:
                return
            opposed, shared = count_conflicts(list(values), [operand.weight for operand in present])
            with lock:
                counts[layer_of(tensor.spec.name)][0] += opposed
                counts[layer_of(tensor.spec.name)][1] += shared

        each_tile(tiles_of(changed), visit, machine.thread_buffers())
    in_order = dict.fromkeys(layer_of(tensor.spec.name) for tensor in changed)
    judged = judge({layer: (counts[layer][0], counts[layer][1]) for layer in in_order}, plan.parameters.threshold)
    usual = {operand.number: operand.weight for tensor in changed for operand in tensor.operands}
    made = {}
    for tensor in changed:
        weights = usual | {operand.number: operand.weight for operand in tensor.operands}
        total = sum(weights[number] for number in sorted(weights))
        made[tensor.spec.name] = judged[layer_of(tensor.spec.name)], total
    return made


def _changed(plan: Plan) -> list[TensorPlan]:
    return [tensor for tensor in plan.tensors if tensor.operands]


def _balance(
    tensors: Sequence[TensorPlan],
    numbers: dict[str, tuple[int, ...]],
    population: dict[str, str],
    ratio: float,
    machine: Machine,
    files: Files,
) -> dict[str, PcbStatistics]:
    """Return the balance of each tensor; those with one `population` are one vector, zero where it has no operand."""
    thread_buffers, lock = machine.thread_buffers(), Lock()
    members = {population[name]: found for name, found in numbers.items()}
    sizes: dict[str, int] = dict.fromkeys(members, 0)
    low = {name: np.full((len(found), len(found)), np.inf) for name, found in members.items()}
    high = {name: np.full((len(found), len(found)), -np.inf) for name, found in members.items()}
    inter = {name: np.zeros((len(found), len(found)), dtype=object) for name, found in members.items()}
    intra = {name: np.zeros(len(found), dtype=object) for name, found in members.items()}

    def rows(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> list[np.ndarray]:
        present, values = finite_values(tensor, tile, buffers, files)
        found = [operand.number for operand in present]
        return rows_of(numbers[tensor.spec.name], found, list(values)) if found else []

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
        found = numerators(vectors, low[name], high[name]) if vectors else {}
        between = {pair: exact_sum(values) for pair, values in found.items()}
        within = [exact_sum(power(found[i, i], len(vectors))) for i in range(len(vectors))]
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
    made = {
        name: PcbStatistics(found, low[name], high[name], _as_floats(inter[name]), _as_floats(intra[name]))
        for name, found in members.items()
    }

    def scored(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> Iterator[tuple[Hashable, np.ndarray]]:
        vectors, name = rows(tensor, tile, buffers), population[tensor.spec.name]
        if vectors:
            betas = scores(numerators(vectors, low[name], high[name]), made[name])
            yield from (((name, place), beta) for place, beta in enumerate(betas))

    keys: dict[Hashable, int] = {
        (name, place): sizes[name] for name, found in members.items() for place in range(len(found))
    }
    edges = select(tensors, {key: [kept_rank(size, ratio)] for key, size in keys.items()}, keys, scored, thread_buffers)
    for name, found in members.items():
        made[name] = replace(made[name], thresholds=tuple(edges[name, place][0] for place in range(len(found))))
    return {name: made[population[name]] for name in numbers}


def _as_floats(units: np.ndarray) -> np.ndarray:
    """Return sums in units of 2⁻⁶⁰ as fp64 numbers, each rounded once."""
    return np.array([unit / (1 << 60) for unit in units.flat], dtype=np.float64).reshape(units.shape)


PASSES: dict[str, Callable[[Plan, Machine], dict[str, Any]]] = {
    "bands": bands,
    "balance": balances,
    "conflicts": conflicts,
}


def findings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a report that says what the first pass found: `layers`, each with its conflict, if any."""
    layers = dict.fromkeys(
        fact[0] for fact in facts.values() if isinstance(fact, tuple) and isinstance(fact[0], LayerConflict)
    )
    return {"layers": [vars(layer) for layer in layers]} if layers else {}
