"""Arithmetic that is the same bits on NumPy arrays and on Torch tensors, for methods that are written once.

On the CPU methods run on NumPy arrays, so that merging loads no torch; on a GPU on Torch tensors. NumPy too is imported
where it is used, so that listing the methods does not load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

Array = Any
"""A NumPy array or a Torch tensor of fp64."""


def weighted_sum(vectors: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return Σ wᵢ·τᵢ, added in the operands' order."""
    total = vectors[0] * weights[0]
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total = total + vector * weight
    return total


def is_numpy(array: Array) -> bool:
    """Return whether an array is NumPy's, not Torch's."""
    import numpy as np

    return isinstance(array, np.ndarray)


def beside(array: np.ndarray, other: Array) -> Array:
    """Return a NumPy array as an array of the kind of `other`, on its device."""
    if is_numpy(other):
        return array
    import torch

    return torch.from_numpy(array).to(other.device)


def single(array: Array) -> Array:
    """Return an array rounded to fp32."""
    return array.astype("float32") if is_numpy(array) else array.float()


def choose(condition: Array, array: Array, other: Array | float) -> Array:
    """Return the elements of `array` where `condition` is true, and of `other` (or that number) elsewhere."""
    if is_numpy(array):
        import numpy as np

        return np.where(condition, array, other)
    import torch

    return torch.where(condition, array, other)


def sort_rows(array: Array) -> Array:
    """Return a 2-D array with each row sorted, the smallest first."""
    if is_numpy(array):
        import numpy as np

        return np.sort(array, axis=1)
    return array.sort(dim=1).values


def cumulative_counts(flags: Array) -> Array:
    """Return for each element of a 2-D bool array how many in its row are true up to and with it."""
    if is_numpy(flags):
        import numpy as np

        return np.cumsum(flags, axis=1)
    return flags.cumsum(dim=1)
