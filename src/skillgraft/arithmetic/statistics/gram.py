"""Gram matrices: the dot products of a tensor's operands, for methods that compare them by their angles."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.plan_types import TensorPlan, tiles_of
from skillgraft.arithmetic.tile_values import finite_values
from skillgraft.arithmetic.tiles import Tile, each_tile
from skillgraft.errors import CompatibilityError


def gram_matrices(tensors: Sequence[TensorPlan], thread_buffers: Sequence[Buffers]) -> dict[str, list[list[float]]]:
    """Return by tensor name the matrix of dot products of its operands, over the rows that all of them have.

    Raises `CompatibilityError` for elements whose squares overflow fp64.
    """
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

        each_tile(tiles_of(tensors), visit, thread_buffers)
    for (name, _, _), tile_sums in sums.items():
        if not math.isfinite(math.fsum(tile_sums)):
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
