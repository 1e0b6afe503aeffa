"""95% intervals by the cluster bootstrap: whole documents are drawn, since questions on one document go together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skillgraft.evals.evaluation import Interval

RESAMPLES = 4000


def bootstrap(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, weights: Sequence[float] | None = None
) -> Interval:
    """Return the mean of `values` and the interval from redrawing whole clusters (Efron & Tibshirani 1993, ch. 13).

    `values[i]` belongs to cluster `clusters[i]`; a cluster weighs as much as it has values. With one cluster nothing
    can be redrawn, and the interval is the mean alone. For a paired difference pass the differences. With `weights`
    the mean is the ratio Σ values / Σ weights, as of bits per byte.

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
    counts = np.bincount(member, weights=weights)
    drawn = np.random.default_rng(seed).integers(len(index), size=(RESAMPLES, len(index)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    mean = np.mean(values) if weights is None else np.sum(values) / np.sum(weights)
    return {"mean": float(mean), "low": float(low), "high": float(high), "n": len(values)}


def bootstrap_of_strata(strata: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Return the mean of the strata's means, each counting alike, and the interval from redrawing within each.

    With one stratum this is `bootstrap` of its values.
    """
    generator = np.random.default_rng(seed)
    means = np.zeros(RESAMPLES)
    for values in strata:
        drawn = generator.integers(len(values), size=(RESAMPLES, len(values)))
        means += np.asarray(values, dtype=np.float64)[drawn].mean(axis=1)
    low, high = np.percentile(means / len(strata), [2.5, 97.5])
    mean = float(np.mean([np.mean(values) for values in strata]))
    return {"mean": mean, "low": float(low), "high": float(high), "n": sum(map(len, strata))}
