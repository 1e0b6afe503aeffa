"""Layer-wise conflicts: the share of elements that operands change in opposite directions (arXiv 2502.04411)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.plan_types import TensorPlan, tiles_of
from skillgraft.arithmetic.tile_values import finite_values
from skillgraft.arithmetic.tiles import Tile, each_tile

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

_LAYER = re.compile(r"^(?:.*?\.)?(?:layers|layer|blocks|block|h)\.\d+(?=\.)")


@dataclass(frozen=True)
class LayerConflict:
    """A layer's conflict, and whether it is calm: not above the threshold."""

    layer: str
    conflict: float
    calm: bool


def layer_of(name: str) -> str:
    """Return the layer that a tensor belongs to, such as `model.layers.3`; its own name where it is in none."""
    match = _LAYER.match(name)
    return match.group() if match else name


def count_conflicts(vectors: Sequence[Float[ndarray, " e"]], weights: Sequence[float]) -> tuple[int, int]:
    """Return (elements that two vectors at least pull in opposite directions, elements that two at least change)."""
    up = sum(vector * weight > 0 for vector, weight in zip(vectors, weights, strict=True))
    changes = [(vector * weight != 0).astype(int) for vector, weight in zip(vectors, weights, strict=True)]
    changing, rising = sum(changes[1:], start=changes[0]), up
    shared = changing >= 2
    return int((shared & (rising > 0) & (rising < changing)).sum()), int(shared.sum())


def judge(counts: Mapping[str, tuple[int, int]], threshold: float | None) -> dict[str, LayerConflict]:
    """Return each layer's conflict d, the share of its shared elements whose signs oppose, and whether d ≤ threshold.

    The threshold is the mean of d over the layers where None is given. A layer without shared elements has d = 0.
    """
    conflicts = {layer: opposed / shared if shared else 0.0 for layer, (opposed, shared) in counts.items()}
    limit = sum(conflicts.values()) / len(conflicts) if threshold is None and conflicts else threshold or 0.0
    return {layer: LayerConflict(layer, conflict, conflict <= limit) for layer, conflict in conflicts.items()}


def layer_conflicts(
    tensors: Sequence[TensorPlan], threshold: float | None, thread_buffers: Sequence[Buffers]
) -> dict[str, tuple[LayerConflict, float]]:
    """Return by tensor name the conflict of its layer (see `judge`) and the sum of all operands' weights."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    lock = Lock()
    with Files() as files:

        def visit(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
            present, values = finite_values(tensor, tile, buffers, files)
            if not present:
                return
            opposed, shared = count_conflicts(list(values), [operand.weight for operand in present])
            with lock:
                counts[layer_of(tensor.spec.name)][0] += opposed
                counts[layer_of(tensor.spec.name)][1] += shared

        each_tile(tiles_of(tensors), visit, thread_buffers)
    in_order = dict.fromkeys(layer_of(tensor.spec.name) for tensor in tensors)
    conflicts = judge({layer: (counts[layer][0], counts[layer][1]) for layer in in_order}, threshold)
    usual = {operand.number: operand.weight for tensor in tensors for operand in tensor.operands}
    by_tensor = {}
    for tensor in tensors:
        weights = usual | {operand.number: operand.weight for operand in tensor.operands}
        total = sum(weights[number] for number in sorted(weights))
        by_tensor[tensor.spec.name] = conflicts[layer_of(tensor.spec.name)], total
    return by_tensor
