"""DARE with the election of TIES: random dropping, then the mean of what has the elected sign (arXiv 2311.03099).

`dare_ties` is the reference definition and `kernel` what the CPU runs; `test_the_kernels_are_the_definitions` in
`tests/arithmetic/test_methods.py` holds both to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from skillgraft.arithmetic.arrays import Array
from skillgraft.arithmetic.kernels.codes import ELECT
from skillgraft.arithmetic.methods.dare import (
    Dare,
    drop_and_rescale,
    keep_masks,
    mergekit_density,
    rescaled_by_density,
)
from skillgraft.arithmetic.methods.method import KernelSettings, Mergekit, Method, TileContext
from skillgraft.arithmetic.methods.ties import elect_and_average

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float


class DareTies(Dare):
    """`normalize` divides by the weights that agree with the elected sign."""

    normalize: bool = Field(True, description="divide by the weights that agree with the elected sign")


def dare_ties(
    vectors: Sequence[Float[Array, " n"]],
    weights: Sequence[float],
    masks: Bool[np.ndarray, "vectors n"],
    density: float,
    normalize: bool = True,
) -> Float[Array, " n"]:
    """Return the disjoint mean (`elect_and_average`) of (mᵢ⊙τᵢ)/p, the change to the base, as `dare` has them."""
    return elect_and_average(drop_and_rescale(vectors, masks, density), weights, normalize)


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    parameters = tile.parameters
    return dare_ties(values, tile.weights, keep_masks(tile), parameters.density, parameters.normalize)


def _kernel(tile: TileContext) -> KernelSettings:
    parameters = tile.parameters
    return KernelSettings(
        tile.weights, rule=ELECT, masks=keep_masks(tile), density=parameters.density, normalize=parameters.normalize
    )


def _mergekit(parameters: DareTies, _models: Sequence[str], _base: str) -> dict[str, Any]:
    return rescaled_by_density(parameters, parameters.normalize)


DARE_TIES = Method(
    name="dare_ties",
    inputs="vectors",
    combine=_combine,
    parameters=DareTies,
    kernel=_kernel,
    mergekit=Mergekit("dare_ties", _mergekit, mergekit_density),
)
