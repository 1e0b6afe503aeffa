"""Mediator's layer-wise conflicts as a static merge: calm layers are averaged (arXiv 2502.04411, section 3).

The paper routes each input to one of the experts in the layers that conflict; a single checkpoint cannot, so there a
method that is named takes its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skillgraft.arithmetic.methods.arrays import weighted_sum

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
    found = _LAYER.match(name)
    return found.group() if found else name


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
    found = {layer: opposed / shared if shared else 0.0 for layer, (opposed, shared) in counts.items()}
    limit = sum(found.values()) / len(found) if threshold is None and found else threshold or 0.0
    return {layer: LayerConflict(layer, conflict, conflict <= limit) for layer, conflict in found.items()}


def mediator(
    vectors: Sequence[Float[ndarray, " e"]],
    weights: Sequence[float],
    conflict: LayerConflict,
    total: float,
    fallback: str = "task_arithmetic",
) -> Float[ndarray, " e"]:
    """Return the change to the base: Σ wᵢ·τᵢ / Σ wᵢ in a calm layer (`total` is Σ wᵢ), the fallback's in another.

    `task_arithmetic` adds: Σ wᵢ·τᵢ; `first` keeps the first operand's apart, w₁·τ₁, as a route to that expert would.
    """
    if conflict.calm:
        return weighted_sum(vectors, weights) / total
    return weighted_sum(vectors[:1], weights[:1]) if fallback == "first" else weighted_sum(vectors, weights)
