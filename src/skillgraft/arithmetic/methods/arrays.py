"""What the sparsifying methods share: arithmetic that is the same bits on NumPy arrays and on Torch tensors.

These methods are written once, with operators that IEEE 754 fixes to the last bit. On the CPU they run on NumPy
arrays, so that merging loads no torch, on a GPU on Torch tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = Any
"""A NumPy array or a Torch tensor of fp64."""


def weighted_sum(vectors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return Σ wᵢ·τᵢ, added in the operands' order."""
    total = vectors[0] * weights[0]
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total = total + vector * weight
    return total


def sort_rows(array: Array) -> Array:
    """Return a 2-D array with each row sorted, the smallest first."""
    return np.sort(array, axis=1) if isinstance(array, np.ndarray) else array.sort(dim=1).values


def count_up(flags: Array) -> Array:
    """Return for each element of a 2-D bool array how many in its row are true up to and with it."""
    return np.cumsum(flags, axis=1) if isinstance(flags, np.ndarray) else flags.cumsum(dim=1)
