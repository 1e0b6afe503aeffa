"""SLERP: spherical linear interpolation between two tensors (Shoemake 1985, section 3.3).

`slerp` is the reference definition and `kernel` what the CPU runs; `test_the_kernels_are_the_definitions` in
`tests/arithmetic/test_methods.py` holds both to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from skillgraft.arithmetic.arrays import Array, weighted_sum
from skillgraft.arithmetic.methods.method import KernelSettings, Mergekit, Method, Parameters, Statistic, TileContext
from skillgraft.errors import CompatibilityError, RecipeError

if TYPE_CHECKING:
    from jaxtyping import Float

    from skillgraft.arithmetic.buffers import Buffers
    from skillgraft.arithmetic.plan_types import TensorPlan

PARALLEL = 0.9995
"""Above this cos θ the straight line is taken: sin θ would divide by almost nothing."""

OPPOSITE = -1.0 + 1e-12
"""Below this cos θ every great circle through a passes b: no path is the shortest."""


class Slerp(Parameters):
    """`t` is the place between the first model (0) and the second (1)."""

    t: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="0: the first model, 1: the second")


def slerp_weights(t: float, dot: float, norm_a: float, norm_b: float) -> tuple[float, float]:
    """Return (sin((1−t)θ)/sin θ, sin(tθ)/sin θ), θ the angle between a and b; (1−t, t) for parallel or zero tensors.

    `dot` is a·b, the norms are Frobenius norms, all of whole tensors. `ValueError` for opposite tensors.
    """
    cosine = dot / (norm_a * norm_b) if norm_a > 0 and norm_b > 0 else 1.0
    if cosine > PARALLEL:
        return 1.0 - t, t
    if cosine < OPPOSITE:
        raise ValueError("the two tensors are opposite, so that no path between them is the shortest")
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def slerp(a: Float[Array, " n"], b: Float[Array, " n"], weights: tuple[float, float]) -> Float[Array, " n"]:
    """Return w_a·a + w_b·b with the weights of `slerp_weights`."""
    return weighted_sum([a, b], weights)


def _weights(parameters: Slerp, gram: Sequence[Sequence[float]]) -> tuple[float, float]:
    (aa, ab), (_, bb) = gram
    return slerp_weights(parameters.t, ab, aa**0.5, bb**0.5)


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return slerp(values[0], values[1], _weights(tile.parameters, tile.statistics))


def _kernel(tile: TileContext) -> KernelSettings:
    return KernelSettings(_weights(tile.parameters, tile.statistics))


def _angles(
    tensors: Sequence[TensorPlan], parameters: Slerp, thread_buffers: Sequence[Buffers]
) -> dict[str, list[list[float]]]:
    """Return the Gram matrices of the two models; refuse opposite tensors before anything is written."""
    from skillgraft.arithmetic.statistics.gram import gram_matrices

    grams = gram_matrices(tensors, thread_buffers)
    for name, gram in grams.items():
        try:
            _weights(parameters, gram)
        except ValueError as error:
            raise CompatibilityError(f"tensor {name!r}: {error}; merge with linear, or leave one model out") from error
    return grams


def _mergekit(parameters: Slerp, models: Sequence[str], base: str) -> dict[str, Any]:
    if base not in models:
        raise RecipeError(
            f"slerp whose base {base} is neither of the two models has no mergekit equivalent: mergekit takes "
            "config and tokenizer from one of them; name that one as base"
        )
    return {"t": parameters.t if models[0] == base else 1 - parameters.t}


SLERP = Method(
    name="slerp",
    inputs="models",
    combine=_combine,
    parameters=Slerp,
    kernel=_kernel,
    statistics=Statistic(_angles, passes=1),
    weighted=False,
    min_operands=2,
    max_operands=2,
    mergekit=Mergekit("slerp", _mergekit),
)
