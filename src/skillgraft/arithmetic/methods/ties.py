"""TIES: trim each task vector, elect a sign per element, average what agrees with it (arXiv 2306.01708, section 4).

`ties` is the reference definition and `kernel` what the CPU runs; `test_the_kernels_are_the_definitions` in
`tests/arithmetic/test_methods.py` holds both to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from skillgraft.arithmetic.arrays import Array, choose, single
from skillgraft.arithmetic.kernels.codes import ELECT
from skillgraft.arithmetic.merge_schema import Finite
from skillgraft.arithmetic.methods.method import (
    Density,
    KernelSettings,
    Mergekit,
    Method,
    Parameters,
    Statistic,
    TileContext,
)
from skillgraft.errors import RecipeError

if TYPE_CHECKING:
    from jaxtyping import Float

    from skillgraft.arithmetic.buffers import Buffers
    from skillgraft.arithmetic.plan_types import TensorPlan


class Ties(Parameters):
    """`density` is kept of each vector: over the whole model as in the paper, or of each tensor; λ is `scale`."""

    density: Density = Field(0.2, description="share of each vector that is kept, the largest first")
    scope: Literal["model", "tensor"] = Field("model", description="kept of the whole vector, or of each tensor")
    normalize: bool = Field(True, description="divide by the weights that agree with the elected sign")
    scale: Finite = Field(1.0, description="λ")


def trim(vector: Float[Array, " n"], threshold: float) -> Float[Array, " n"]:
    """Return the elements of `vector` whose magnitude in fp32 is not below `threshold`, 0 in place of the others."""
    return choose(abs(single(vector)) >= threshold, vector, 0.0)


def elect_and_average(
    vectors: Sequence[Float[Array, " n"]], weights: Sequence[float], normalize: bool = True
) -> Float[Array, " n"]:
    """Return the sum of the weighted vectors' elements that have the elected sign.

    The sign is that of Σ wᵢ·τᵢ (+ for a sum of exactly 0). With `normalize` the sum is divided by the sum of |wᵢ| of
    those that agree (the paper's disjoint mean; the paper has no weights, and a negative one must stay negative).
    """
    weighted = [vector * weight for vector, weight in zip(vectors, weights, strict=True)]
    total = weighted[0]
    for vector in weighted[1:]:
        total = total + vector
    positive = total >= 0
    agreeing, divisor = total * 0.0, total * 0.0
    for vector, weight in zip(weighted, weights, strict=True):
        magnitude = choose(positive, vector, -vector)
        agrees = magnitude > 0
        agreeing = agreeing + choose(agrees, magnitude, 0.0)
        divisor = divisor + choose(agrees, magnitude * 0.0 + abs(weight), 0.0)
    mean = agreeing / choose(divisor >= 1e-8, divisor, 1.0) if normalize else agreeing
    return choose(positive, mean, -mean)


def ties(
    vectors: Sequence[Float[Array, " n"]],
    weights: Sequence[float],
    thresholds: Sequence[float],
    normalize: bool = True,
    scale: float = 1.0,
) -> Float[Array, " n"]:
    """Return λ·(disjoint mean of the trimmed vectors), the change to the base.

    `thresholds` are the magnitudes (fp32) of the smallest element that each vector keeps. The paper weighs all vectors
    alike (weights of 1) and scales the mean by λ (`scale`).
    """
    trimmed = [trim(vector, threshold) for vector, threshold in zip(vectors, thresholds, strict=True)]
    return elect_and_average(trimmed, weights, normalize) * scale


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return ties(values, tile.weights, tile.statistics, tile.parameters.normalize, tile.parameters.scale)


def _kernel(tile: TileContext) -> KernelSettings:
    return KernelSettings(
        tile.weights,
        rule=ELECT,
        thresholds=tile.statistics,
        normalize=tile.parameters.normalize,
        factor=tile.parameters.scale,
    )


def _thresholds(
    tensors: Sequence[TensorPlan], parameters: Ties, thread_buffers: Sequence[Buffers]
) -> dict[str, list[float]]:
    from skillgraft.arithmetic.statistics.thresholds import magnitude_thresholds

    return magnitude_thresholds(tensors, parameters.density, parameters.scope, thread_buffers)


def _mergekit(parameters: Ties, _models: Sequence[str], _base: str) -> dict[str, Any]:
    scaled = {} if parameters.scale == 1 else {"lambda": parameters.scale}
    return {"normalize": parameters.normalize, **scaled}


def _mergekit_model(parameters: Ties) -> dict[str, Any]:
    if parameters.scope == "model":
        raise RecipeError(
            "ties with scope 'model' has no mergekit equivalent: mergekit trims each tensor apart; set "
            "parameters.scope to tensor"
        )
    return {"density": parameters.density}


TIES = Method(
    name="ties",
    inputs="vectors",
    combine=_combine,
    parameters=Ties,
    kernel=_kernel,
    statistics=Statistic(_thresholds, passes=2, per_operand=True),
    mergekit=Mergekit("ties", _mergekit, _mergekit_model),
    bytes_per_second=2e9,
)
