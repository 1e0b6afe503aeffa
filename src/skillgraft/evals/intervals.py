"""95% intervals by the cluster bootstrap: whole documents are drawn, since questions on one document go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

RESAMPLES = 4000


class Interval(TypedDict):
    """A mean with its 95% percentile bootstrap interval over `n` observations."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(values: Sequence[float], clusters: Sequence[str], seed: int = 0) -> Interval:
    """Return the mean of `values` and the interval from redrawing whole clusters (Efron & Tibshirani 1993, ch. 13).

    `values[i]` belongs to cluster `clusters[i]`; a cluster weighs as much as it has values. With one cluster nothing
    can be redrawn, and the interval is the mean alone. For a paired difference pass the differences.

    Raises:
        ValueError: no values, or other numbers of values and clusters.
    """
    if not values or len(values) != len(clusters):
        raise ValueError(
            f"got {len(values)} values and {len(clusters)} clusters, expected as many of each, at least one"
        )
    index = {name: i for i, name in enumerate(dict.fromkeys(clusters))}
    member = np.array([index[c] for c in clusters])
    sums = np.bincount(member, weights=np.asarray(values, dtype=np.float64))
    counts = np.bincount(member)
    drawn = np.random.default_rng(seed).integers(len(index), size=(RESAMPLES, len(index)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": float(np.mean(values)), "low": float(low), "high": float(high), "n": len(values)}
