"""A plan's tensors without a file: the same bytes as a merge would store, for a live model or a comparison."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from skillgraft.arithmetic.cpu_tiles import operand_values
from skillgraft.arithmetic.first_pass import gather_facts
from skillgraft.arithmetic.leaves import Stored
from skillgraft.arithmetic.plan import Operand, Plan, TensorPlan, Term
from skillgraft.arithmetic.scratch import Files, Scratch
from skillgraft.arithmetic.stream import Machine, Sink, make_tile, tiles_of
from skillgraft.arithmetic.tiles import Tile, cut, each_tile
from skillgraft.checkpoint.header import TensorInfo, TensorSpec


def make_tensors(plan: Plan, tensors: Sequence[TensorPlan], sink: Sink, machine: Machine, scale: float = 1.0) -> None:
    """Compute `tensors` of a plan for one λ and give their stored bytes to `sink`, tile by tile, from any thread."""
    facts = gather_facts(plan, machine)
    with Files(plan.versions) as files:

        def visit(tensor: TensorPlan, tile: Tile, scratch: Scratch) -> None:
            make_tile(plan, facts, tensor, tile, [scale], [sink], machine.compute, scratch, files)

        each_tile(tiles_of(tensors), visit, threads=machine.threads, scratches=machine.scratches())
        files.check_unchanged()


def operand_norms(plan: Plan, machine: Machine) -> dict[tuple[str, int], float]:
    """Return the Frobenius norm of every operand's value by (tensor, the operand's number), weights left out."""
    sums: dict[tuple[str, int], list[float]] = defaultdict(list)
    with Files(plan.versions) as files:

        def visit(tensor: TensorPlan, tile: Tile, scratch: Scratch) -> None:
            present = [operand for operand in tensor.operands if tile.stop <= operand.elements]
            if present:
                values = operand_values(tensor, present, tile, scratch, files)
                for operand, row in zip(present, values, strict=True):
                    sums[tensor.spec.name, operand.number].append(float(row @ row))

        changed = [tensor for tensor in plan.tensors if tensor.operands]
        each_tile(tiles_of(changed), visit, threads=machine.threads, scratches=machine.scratches())
    return {key: math.fsum(parts) ** 0.5 for key, parts in sums.items()}


_MANTISSA = {"BF16": 7, "F16": 10, "F32": 23, "F64": 52}
_LEAST_EXPONENT = {"BF16": -126, "F16": -14, "F32": -126, "F64": -1022}


def rounding_bounds(infos: Iterable[TensorInfo], machine: Machine) -> dict[str, tuple[float, float]]:
    """Return by name (the most that rounding can have moved a stored tensor, its norm), both Frobenius, in fp64.

    The first is ‖ulp(x)/2‖: whatever was rounded to the nearest stored number x lay within half of the distance to
    x's neighbours, ulp(x) = 2^(e − t) for x in [2^e, 2^(e+1)) and t stored bits of mantissa, e never below the least
    normal exponent.
    """
    sums: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with Files() as files:

        def visit(info: TensorInfo, tile: Tile, scratch: Scratch) -> None:
            leaf = Stored(info)
            whole = TensorPlan(TensorSpec(info.name, info.dtype, info.shape), leaf, ())
            values = operand_values(whole, [Operand(0, 1.0, (Term(1, leaf),))], tile, scratch, files)[0]
            exponents = np.frexp(values)[1] - 1
            exponents[values == 0] = _LEAST_EXPONENT[info.dtype]
            halves = np.ldexp(1.0, np.maximum(exponents, _LEAST_EXPONENT[info.dtype]) - _MANTISSA[info.dtype] - 1)
            sums[info.name].append((float(halves @ halves), float(values @ values)))

        tiles = ((info, tile) for info in infos for tile in cut(info.elements))
        each_tile(tiles, visit, threads=machine.threads, scratches=machine.scratches())
    return {
        name: (math.fsum(a for a, _ in parts) ** 0.5, math.fsum(b for _, b in parts) ** 0.5)
        for name, parts in sums.items()
    }
