"""CABS: n:m pruning of one task vector after another, each in what the earlier ones left (arXiv 2503.01874, alg. 1).

`cabs` is the definition, and what the CPU and a GPU run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from skillgraft.arithmetic.arrays import Array, cumulative_counts, sort_rows, weighted_sum
from skillgraft.arithmetic.methods.method import Method, Parameters, TileContext
from skillgraft.errors import RecipeError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from skillgraft.arithmetic.plan_types import Draft


class Cabs(Parameters):
    """`n` of every `m` consecutive elements are kept of each vector, none of them twice."""

    n: Annotated[int, Field(ge=1)] = Field(64, description="elements kept of every m")
    m: Annotated[int, Field(ge=1, le=1 << 16)] = Field(256, description="consecutive elements of which n are kept")

    @model_validator(mode="after")
    def _keeps_a_part(self) -> Cabs:
        if self.n > self.m:
            raise ValueError(f"n {self.n} is larger than m {self.m}; expected n of m elements to be kept, n <= m")
        return self


def largest_of_blocks(magnitudes: Float[Array, "blocks m"], n: int) -> Bool[Array, "blocks m"]:
    """Return which elements are among the n largest of their block; of equal ones the first, and none that is 0."""
    least = sort_rows(magnitudes)[:, -n][:, None]
    above, equal = magnitudes > least, magnitudes == least
    vacancies = n - above.sum(axis=1)[:, None]
    return (above | (equal & (cumulative_counts(equal) <= vacancies))) & (magnitudes > 0)


def cabs(vectors: Sequence[Float[Array, " e"]], weights: Sequence[float], n: int, m: int) -> Float[Array, " e"]:
    """Return Σ wᵢ·mᵢ⊙τᵢ, the change to the base, with masks mᵢ that never overlap.

    The first vector keeps the n largest magnitudes of every m consecutive elements; each further one, in the operands'
    order, the n largest of those that no earlier one took (balanced, then conflict-aware, sparsification). An element
    that is 0 takes no place. The weights are the paper's λ. The number of elements must be a multiple of m.
    """
    masked, free = [], None
    for vector in vectors:
        blocks = vector.reshape(-1, m)
        magnitudes = abs(blocks) if free is None else abs(blocks) * free
        mask = largest_of_blocks(magnitudes, n)
        free = ~mask if free is None else free & ~mask
        masked.append((blocks * mask).reshape(-1))
    return weighted_sum(masked, weights)


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return cabs(values, tile.weights, tile.parameters.n, tile.parameters.m)


def _plan(draft: Draft) -> Draft:
    """Have tiles end between blocks; raise `RecipeError` unless every changed tensor is whole blocks of m elements."""
    m = draft.recipe.parameters.m
    sizes = [(t, size) for t in draft.tensors if t.operands for size in (t.target.elements, *t.breaks)]
    for tensor, size in sizes:
        if size % m:
            common = math.gcd(*(size for _, size in sizes))
            power = min(common & -common, 1 << 16)
            raise RecipeError(
                f"parameters.m is {m}: tensor {tensor.spec.name!r} of shape {list(tensor.spec.shape)} has {size} "
                f"elements, which are no whole blocks of {m}; expected m to divide every tensor that changes: "
                f"{common} and what divides it do, such as n: {max(1, power // 4)}, m: {power}"
            )
    return replace(draft, tensors=tuple(replace(tensor, block=m) for tensor in draft.tensors))


CABS = Method(
    name="cabs",
    inputs="vectors",
    combine=_combine,
    parameters=Cabs,
    min_operands=2,
    plan=_plan,
    bytes_per_second=5e8,
)
