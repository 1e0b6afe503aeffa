"""Mediator's layer-wise conflicts as a static merge: calm layers are averaged (arXiv 2502.04411, section 3).

The paper routes each input to one of the experts in the layers that conflict; a single checkpoint cannot, so there a
method that is named takes its place.

`mediator` is the definition, and what the CPU and a GPU run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from skillgraft.arithmetic.arrays import Array, weighted_sum
from skillgraft.arithmetic.methods.linear import check_average
from skillgraft.arithmetic.methods.method import Method, Parameters, Statistic, TileContext

if TYPE_CHECKING:
    from jaxtyping import Float

    from skillgraft.arithmetic.buffers import Buffers
    from skillgraft.arithmetic.plan_types import TensorPlan
    from skillgraft.arithmetic.statistics.conflicts import LayerConflict


class Mediator(Parameters):
    """Layers whose conflict is at most `threshold` are averaged; `fallback` is for the others.

    The conflict is the share of elements with opposite signs; without a threshold it is the mean over the layers.
    """

    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="largest conflict at which a layer is averaged; default: the mean over the layers"
    )
    fallback: Literal["task_arithmetic", "first"] = Field(
        "task_arithmetic", description="what becomes of the other layers"
    )


def mediator(
    vectors: Sequence[Float[Array, " e"]],
    weights: Sequence[float],
    conflict: LayerConflict,
    total: float,
    fallback: str = "task_arithmetic",
) -> Float[Array, " e"]:
    """Return the change to the base: Σ wᵢ·τᵢ / Σ wᵢ in a calm layer (`total` is Σ wᵢ), the fallback's in another.

    `task_arithmetic` adds: Σ wᵢ·τᵢ; `first` keeps the first operand's apart, w₁·τ₁, as a route to that expert would.
    """
    if conflict.calm:
        return weighted_sum(vectors, weights) / total
    return weighted_sum(vectors[:1], weights[:1]) if fallback == "first" else weighted_sum(vectors, weights)


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    conflict, total = tile.statistics
    if not conflict.calm and tile.parameters.fallback == "first" and tile.numbers[0] != 0:
        return values[0] * 0.0  # the first operand does not change this tensor
    return mediator(values, tile.weights, conflict, total, tile.parameters.fallback)


def _conflicts(
    tensors: Sequence[TensorPlan], parameters: Mediator, thread_buffers: Sequence[Buffers]
) -> dict[str, tuple[LayerConflict, float]]:
    from skillgraft.arithmetic.statistics.conflicts import layer_conflicts

    return layer_conflicts(tensors, parameters.threshold, thread_buffers)


def _report(statistics: Mapping[str, tuple[LayerConflict, float]]) -> dict[str, Any]:
    """Return `layers`, each with its conflict."""
    layers = dict.fromkeys(conflict for conflict, _ in statistics.values())
    return {"layers": [vars(layer) for layer in layers]} if layers else {}


MEDIATOR = Method(
    name="mediator",
    inputs="vectors",
    combine=_combine,
    parameters=Mediator,
    statistics=Statistic(_conflicts, passes=1, report=_report),
    min_operands=2,
    check=check_average,
    bytes_per_second=1e9,
)
