"""A curve in one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

LEVELS = "▁▂▃▄▅▆▇█"
ASCII_LEVELS = "_.-=^"


def sparkline(values: Sequence[float], width: int, levels: str = LEVELS) -> str:
    """Return `values` (those that are finite) as at most `width` characters, from their least to their largest.

    More values than that are averaged in groups of neighbours. Values that are all the same lie in the middle.
    """
    values = [value for value in values if math.isfinite(value)]
    groups = min(len(values), width)
    cuts = [number * len(values) // max(groups, 1) for number in range(groups + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    if low == high:
        return levels[len(levels) // 2] * groups
    return "".join(levels[round((mean - low) / (high - low) * (len(levels) - 1))] for mean in means)
