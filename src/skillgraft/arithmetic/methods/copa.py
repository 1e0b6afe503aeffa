"""CoPA-Merging, published as RobustMerge: low-rank factors pruned, rescaled and added (arXiv 2502.17159, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray


def prune(factor: Float[ndarray, "rows columns"], density: float) -> Float[ndarray, "rows columns"]:
    """Return the factor with its smallest magnitudes set to 0, a share `density` and what ties with it kept."""
    place = max(int(factor.size * (1.0 - density)), 1) - 1
    least = np.partition(np.abs(factor), place, axis=None)[place]
    return factor * (np.abs(factor) >= least)


def compensation(
    a: Float[ndarray, "rank in"], pruned: Float[ndarray, "rank in"], clamp: float
) -> Float[ndarray, " rank"]:
    """Return S, per direction what pruning took from A: Σ|a| / Σ|pruned a|, 0 where nothing is left.

    Directions below the quantile 1 − `clamp` of S are raised to it, which evens out the directions of one task.
    """
    left = np.abs(pruned).sum(axis=1)
    found = np.abs(a).sum(axis=1) / np.where(left > 0, left, 1.0) * (left > 0)
    least = np.sort(found)[min(int(len(found) * (1.0 - clamp)), len(found) - 1)]
    return np.maximum(found, least) * (left > 0)


def copa(
    factors: Sequence[tuple[Float[ndarray, "rank in"], Float[ndarray, "out rank"]]],
    weights: Sequence[float],
    density: float,
    clamp: float,
    coefficient: float,
) -> tuple[Float[ndarray, "rank in"], Float[ndarray, "out rank"]]:
    """Return the merged factors: A = λ·Σ Âᵢ and B = λ·Σ wᵢ·B̂ᵢ·diag(Sᵢ) / Σ Sᵢ, of which B·A changes the base.

    `^` prunes; dividing by Σ Sᵢ normalises each direction across the tasks. `coefficient` is λ.
    """
    pruned = [(prune(a, density), prune(b, density)) for a, b in factors]
    scales = [compensation(a, kept, clamp) for (a, _), (kept, _) in zip(factors, pruned, strict=True)]
    total = np.sum(scales, axis=0)
    b = np.sum([b * (s * weight) for (_, b), s, weight in zip(pruned, scales, weights, strict=True)], axis=0)
    return np.sum([a for a, _ in pruned], axis=0) * coefficient, b * coefficient / np.where(total > 0, total, 1.0)
