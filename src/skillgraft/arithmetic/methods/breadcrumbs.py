"""Model breadcrumbs: of each task vector neither outliers nor what is negligible (arXiv 2312.06795, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from skillgraft.arithmetic.methods.arrays import weighted_sum

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray


def band_ranks(elements: int, beta: float, gamma: float) -> tuple[int, int]:
    """Return the ranks by magnitude, 1 the largest, of the largest and the smallest element that are kept.

    The ⌊β·n⌋ largest and the ⌊γ·n⌋ smallest go; one at least stays.
    """
    largest = min(math.floor(beta * elements) + 1, elements)
    return largest, max(largest, elements - math.floor(gamma * elements))


def breadcrumbs(
    vectors: Sequence[Float[ndarray, " n"]], weights: Sequence[float], bands: Sequence[tuple[float, float]]
) -> Float[ndarray, " n"]:
    """Return Σ wᵢ·mᵢ⊙τᵢ, the change to the base: mᵢ keeps the elements whose magnitude lies in the band of vector i.

    `bands` are the magnitudes of the largest and the smallest element kept, those of `band_ranks` over the whole
    tensor; elements equal to either are kept. The weights are the paper's α.
    """
    kept = [
        vector * ((abs(vector) <= most) & (abs(vector) >= least))
        for vector, (most, least) in zip(vectors, bands, strict=True)
    ]
    return weighted_sum(kept, weights)
