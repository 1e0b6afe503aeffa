"""CABS: n:m pruning of one task vector after another, each in what the earlier ones left (arXiv 2503.01874, alg. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from skillgraft.arithmetic.methods.arrays import count_up, sort_rows, weighted_sum

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy import ndarray


def largest_of_blocks(magnitudes: Float[ndarray, "blocks m"], n: int) -> Bool[ndarray, "blocks m"]:
    """Return which elements are among the n largest of their block; of equal ones the first, and none that is 0."""
    least = sort_rows(magnitudes)[:, -n][:, None]
    above, equal = magnitudes > least, magnitudes == least
    room = n - above.sum(axis=1)[:, None]
    return (above | (equal & (count_up(equal) <= room))) & (magnitudes > 0)


def cabs(vectors: Sequence[Float[ndarray, " e"]], weights: Sequence[float], n: int, m: int) -> Float[ndarray, " e"]:
    """Return Σ wᵢ·mᵢ⊙τᵢ, the change to the base, with masks mᵢ that never overlap.

    The first vector keeps the n largest magnitudes of every m consecutive elements; each further one, in the operands'
    order, the n largest of those that no earlier one took (balanced, then conflict-aware, sparsification). An element
    that is 0 takes no place. The weights are the paper's λ. The number of elements must be a multiple of m.
    """
    kept, free = [], None
    for vector in vectors:
        blocks = vector.reshape(-1, m)
        left = abs(blocks) if free is None else abs(blocks) * free
        mask = largest_of_blocks(left, n)
        free = ~mask if free is None else free & ~mask
        kept.append((blocks * mask).reshape(-1))
    return weighted_sum(kept, weights)
