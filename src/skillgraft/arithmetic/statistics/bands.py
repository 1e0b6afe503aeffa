"""Magnitude bands: the largest and the smallest element that is kept of each operand of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.plan_types import TensorPlan
from skillgraft.arithmetic.statistics.order_statistics import select
from skillgraft.arithmetic.statistics.sampling import groups_of
from skillgraft.arithmetic.tile_values import finite_values
from skillgraft.arithmetic.tiles import Tile


def magnitude_bands(
    tensors: Sequence[TensorPlan], ranks: Callable[[int], tuple[int, int]], thread_buffers: Sequence[Buffers]
) -> dict[str, list[tuple[float, float]]]:
    """Return by tensor name, for each operand, the magnitudes with the two `ranks` (1 the largest) of n elements."""
    bands: dict[str, list[tuple[float, float]]] = {}
    with Files() as files:

        def magnitudes(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> Iterator[tuple[Hashable, np.ndarray]]:
            present, values = finite_values(tensor, tile, buffers, files)
            for operand, row in zip(present, values, strict=True):
                yield (tensor.spec.name, tensor.operands.index(operand)), np.abs(row)

        for group in groups_of(tensors):
            sizes: dict[Hashable, int] = {
                (tensor.spec.name, place): min(operand.elements, tensor.target.elements)
                for tensor in group
                for place, operand in enumerate(tensor.operands)
            }
            edges = select(group, {key: ranks(size) for key, size in sizes.items()}, sizes, magnitudes, thread_buffers)
            for tensor in group:
                of_operands = [edges[tensor.spec.name, place] for place in range(len(tensor.operands))]
                bands[tensor.spec.name] = [(most, least) for most, least in of_operands]
    return bands
