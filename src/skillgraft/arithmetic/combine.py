"""The methods that are written once, for NumPy and Torch: what each is told of a tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from skillgraft.arithmetic.methods import Part
from skillgraft.arithmetic.methods.arrays import Array
from skillgraft.arithmetic.methods.breadcrumbs import breadcrumbs
from skillgraft.arithmetic.methods.cabs import cabs
from skillgraft.arithmetic.methods.mediator import mediator
from skillgraft.arithmetic.methods.pcb import pcb, rows_of, scores
from skillgraft.arithmetic.plan import Operand, Plan, TensorPlan
from skillgraft.arithmetic.softmax_tiles import numerators
from skillgraft.arithmetic.tiles import Tile


def _pcb(values: Sequence[Array], part: Part) -> Array:
    weights = dict(zip(part.numbers, part.weights, strict=True))
    balance = part.facts
    rows = rows_of(balance.numbers, part.numbers, values)
    betas = scores(numerators(rows, balance.low, balance.high), balance)
    return pcb(rows, [weights.get(number, 0.0) for number in balance.numbers], betas, balance.thresholds)


def _mediator(values: Sequence[Array], part: Part) -> Array:
    conflict, total = part.facts
    if not conflict.calm and part.parameters.fallback == "first" and part.numbers[0] != 0:
        return values[0] * 0.0  # the first operand says nothing of this tensor
    return mediator(values, part.weights, conflict, total, part.parameters.fallback)


COMBINED: dict[str, Callable[[Sequence[Array], Part], Array]] = {
    "breadcrumbs": lambda values, part: breadcrumbs(values, part.weights, part.facts),
    "cabs": lambda values, part: cabs(values, part.weights, part.parameters.n, part.parameters.m),
    "pcb": _pcb,
    "mediator": _mediator,
}


def part_of(plan: Plan, tensor: TensorPlan, operands: Sequence[Operand], tile: Tile, facts: Any) -> Part:
    """Return what a method is told of a tile that `operands` have; facts of each operand are theirs."""
    if plan.method.first_pass in ("thresholds", "bands"):
        facts = [facts[tensor.operands.index(operand)] for operand in operands]
    numbers = [operand.number for operand in operands]
    weights = [operand.weight for operand in operands]
    return Part(tensor.spec.name, tile.start, numbers, weights, facts, plan.parameters)
