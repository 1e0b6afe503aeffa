"""Model breadcrumbs: of each task vector neither outliers nor what is negligible (arXiv 2312.06795, section 3).

`breadcrumbs` is the definition, and what the CPU and a GPU run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from skillgraft.arithmetic.arrays import Array, weighted_sum
from skillgraft.arithmetic.methods.method import Mergekit, Method, Parameters, Statistic, TileContext

if TYPE_CHECKING:
    from jaxtyping import Float

    from skillgraft.arithmetic.buffers import Buffers
    from skillgraft.arithmetic.plan_types import TensorPlan

Share = Annotated[float, Field(ge=0, lt=1)]


class Breadcrumbs(Parameters):
    """Of each tensor's vector the share `beta` of the largest magnitudes goes, and `gamma` of the smallest.

    Defaults: where the search of the paper's code begins.
    """

    beta: Share = Field(0.006, description="share of the largest magnitudes that goes")
    gamma: Share = Field(0.85, description="share of the smallest magnitudes that goes")

    @model_validator(mode="after")
    def _leaves_something(self) -> Breadcrumbs:
        if self.beta + self.gamma >= 1:
            raise ValueError(f"beta {self.beta:g} and gamma {self.gamma:g} leave nothing; expected a sum below 1")
        return self


def band_ranks(elements: int, beta: float, gamma: float) -> tuple[int, int]:
    """Return the ranks by magnitude, 1 the largest, of the largest and the smallest element that are kept.

    The ⌊β·n⌋ largest and the ⌊γ·n⌋ smallest go; one at least stays.
    """
    largest = min(math.floor(beta * elements) + 1, elements)
    return largest, max(largest, elements - math.floor(gamma * elements))


def breadcrumbs(
    vectors: Sequence[Float[Array, " n"]], weights: Sequence[float], bands: Sequence[tuple[float, float]]
) -> Float[Array, " n"]:
    """Return Σ wᵢ·mᵢ⊙τᵢ, the change to the base: mᵢ keeps the elements whose magnitude lies in the band of vector i.

    `bands` are the magnitudes of the largest and the smallest element kept, those of `band_ranks` over the whole
    tensor; elements equal to either are kept. The weights are the paper's α.
    """
    masked = [
        vector * ((abs(vector) <= most) & (abs(vector) >= least))
        for vector, (most, least) in zip(vectors, bands, strict=True)
    ]
    return weighted_sum(masked, weights)


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return breadcrumbs(values, tile.weights, tile.statistics)


def _bands(
    tensors: Sequence[TensorPlan], parameters: Breadcrumbs, thread_buffers: Sequence[Buffers]
) -> dict[str, list[tuple[float, float]]]:
    from skillgraft.arithmetic.statistics.bands import magnitude_bands

    return magnitude_bands(
        tensors, lambda elements: band_ranks(elements, parameters.beta, parameters.gamma), thread_buffers
    )


def _mergekit(_parameters: Breadcrumbs, _models: Sequence[str], _base: str) -> dict[str, Any]:
    return {"normalize": False}


def _mergekit_model(parameters: Breadcrumbs) -> dict[str, Any]:
    # `gamma` is mergekit's name for the share of outliers
    return {"density": round(1 - parameters.beta - parameters.gamma, 12), "gamma": parameters.beta}


BREADCRUMBS = Method(
    name="breadcrumbs",
    inputs="vectors",
    combine=_combine,
    parameters=Breadcrumbs,
    statistics=Statistic(_bands, passes=2, per_operand=True, memory_bytes=100e6),
    mergekit=Mergekit("breadcrumbs", _mergekit, _mergekit_model),
    bytes_per_second=1e9,
)
