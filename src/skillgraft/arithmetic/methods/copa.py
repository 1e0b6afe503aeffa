"""CoPA-Merging, published as RobustMerge: low-rank factors pruned, rescaled and added (arXiv 2502.17159, section 4).

`copa` merges the factors of a tensor; the plan puts their product in the operands' place, and `combine` with its
`kernel` only adds that to the base. `test_the_kernels_are_the_definitions` in `tests/arithmetic/test_methods.py` holds
both to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from skillgraft.arithmetic.arrays import Array, weighted_sum
from skillgraft.arithmetic.merge_schema import Finite, MergeRecipe
from skillgraft.arithmetic.methods.method import Density, KernelSettings, Method, Parameters, TileContext
from skillgraft.errors import CompatibilityError, RecipeError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float

    from skillgraft.arithmetic.buffers import Files
    from skillgraft.arithmetic.plan_types import Draft, TensorPlan
    from skillgraft.arithmetic.tensor_sources import Product
    from skillgraft.checkpoint.header import TensorInfo


class Copa(Parameters):
    """`density` of each factor is kept, `clamp` of its directions keep a scale of their own, λ is `coefficient`.

    Defaults: those of the paper's code.
    """

    density: Density = Field(0.2, description="share of each factor that is kept")
    clamp: Density = Field(0.2, description="share of the directions that keep a scale of their own")
    coefficient: Finite = Field(2.0, description="λ")


def prune(factor: Float[np.ndarray, "rows columns"], density: float) -> Float[np.ndarray, "rows columns"]:
    """Return the factor with its smallest magnitudes set to 0, a share `density` and what ties with it kept."""
    import numpy as np

    place = max(int(factor.size * (1.0 - density)), 1) - 1
    least = np.partition(np.abs(factor), place, axis=None)[place]
    return factor * (np.abs(factor) >= least)


def compensation(
    a: Float[np.ndarray, "rank in"], pruned: Float[np.ndarray, "rank in"], clamp: float
) -> Float[np.ndarray, " rank"]:
    """Return S, per direction what pruning took from A: Σ|a| / Σ|pruned a|, 0 where nothing is left.

    Directions below the quantile 1 − `clamp` of S are raised to it, which evens out the directions of one task.
    """
    import numpy as np

    remainder = np.abs(pruned).sum(axis=1)
    scales = np.abs(a).sum(axis=1) / np.where(remainder > 0, remainder, 1.0) * (remainder > 0)
    least = np.sort(scales)[min(int(len(scales) * (1.0 - clamp)), len(scales) - 1)]
    return np.maximum(scales, least) * (remainder > 0)


def copa(
    factors: Sequence[tuple[Float[np.ndarray, "rank in"], Float[np.ndarray, "out rank"]]],
    weights: Sequence[float],
    density: float,
    clamp: float,
    coefficient: float,
) -> tuple[Float[np.ndarray, "rank in"], Float[np.ndarray, "out rank"]]:
    """Return the merged factors: A = λ·Σ Âᵢ and B = λ·Σ wᵢ·B̂ᵢ·diag(Sᵢ) / Σ Sᵢ, of which B·A changes the base.

    `^` prunes; dividing by Σ Sᵢ normalises each direction across the tasks. `coefficient` is λ.
    """
    import numpy as np

    pruned = [(prune(a, density), prune(b, density)) for a, b in factors]
    scales = [compensation(a, pruned_a, clamp) for (a, _), (pruned_a, _) in zip(factors, pruned, strict=True)]
    total = np.sum(scales, axis=0)
    b = np.sum([b * (s * weight) for (_, b), s, weight in zip(pruned, scales, weights, strict=True)], axis=0)
    return np.sum([a for a, _ in pruned], axis=0) * coefficient, b * coefficient / np.where(total > 0, total, 1.0)


@dataclass(frozen=True)
class MergedProduct:
    """A tensor source: the product of the factors that `copa` makes of several low-rank deltas of one tensor."""

    products: tuple[Product, ...]
    weights: tuple[float, ...]
    density: float
    clamp: float
    coefficient: float

    @property
    def dtype(self) -> str:
        """The safetensors code of its elements."""
        return "F64"

    @property
    def elements(self) -> int:
        """The number of elements of the product."""
        return self.products[0].elements

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""
        return sum(product.nbytes for product in self.products)

    @property
    def files(self) -> tuple[TensorInfo, ...]:
        """The stored tensors that it is read from."""
        return tuple(info for product in self.products for info in product.files)

    def read(self, start: int, stop: int, files: Files, raw: np.ndarray) -> None:
        """Write the bytes of the flat elements from `start` to `stop` to the beginning of `raw` (uint8)."""
        from skillgraft.arithmetic.tensor_sources import read_product

        read_product(files.cached(self, lambda: self._merge(files)), start, stop, raw)

    def _merge(self, files: Files) -> tuple[np.ndarray, np.ndarray]:
        factors = [product.factors(files) for product in self.products]
        return copa(factors, self.weights, self.density, self.clamp, self.coefficient)


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return weighted_sum(values, tile.weights)


def _kernel(tile: TileContext) -> KernelSettings:
    return KernelSettings(tile.weights)


def _check(recipe: MergeRecipe) -> None:
    for place, operand in enumerate(recipe.operands):
        if operand.model is not None:
            raise RecipeError(
                f"operands.{place} is the checkpoint {operand.model}; copa merges low-rank factors: expected adapters "
                "and skills (pcb, cabs and breadcrumbs take checkpoints)"
            )


def _plan(draft: Draft) -> Draft:
    expected = {number for number, operand in enumerate(draft.recipe.operands) if operand.weight != 0}
    tensors = tuple(
        _merge_factors(tensor, expected, draft.recipe.parameters) if tensor.operands else tensor
        for tensor in draft.tensors
    )
    return replace(draft, tensors=tensors)


def _merge_factors(tensor: TensorPlan, expected: set[int], parameters: Copa) -> TensorPlan:
    """Return the tensor with one operand in place of all: the product of their merged factors.

    Deltas that are stored whole, such as norms', are averaged. Raises `CompatibilityError` for a tensor that not every
    one of the `expected` operands changes, or in another form or rank.
    """
    from skillgraft.arithmetic.tensor_sources import Product, Stored

    name = tensor.spec.name
    missing = sorted(expected - {operand.number for operand in tensor.operands})
    if missing:
        raise CompatibilityError(
            f"operands.{missing[0]} does not change {name!r}, which operands.{tensor.operands[0].number} does; copa "
            "merges the factors of adapters and skills on the same modules: leave one out, or use task_arithmetic"
        )
    sources = [operand.terms[0].source for operand in tensor.operands]
    if all(isinstance(source, Stored) for source in sources):
        share = 1.0 / len(sources)
        return replace(tensor, operands=tuple(replace(o, weight=o.weight * share) for o in tensor.operands))
    ranks = [source.a.shape[0] if isinstance(source, Product) else None for source in sources]
    if len(set(ranks)) > 1:
        forms = ", ".join("no factors" if rank is None else f"rank {rank}" for rank in ranks)
        raise CompatibilityError(
            f"tensor {name!r}: the operands have {forms}; copa merges factors of one rank: expected the same rank in "
            "all, or use task_arithmetic"
        )
    weights = tuple(operand.weight for operand in tensor.operands)
    products = tuple(source for source in sources if isinstance(source, Product))
    merged = MergedProduct(products, weights, parameters.density, parameters.clamp, parameters.coefficient)
    first = tensor.operands[0]
    term = first.terms[0]._replace(source=merged)
    return replace(tensor, operands=(replace(first, number=0, weight=1.0, terms=(term,)),))


COPA = Method(
    name="copa",
    inputs="vectors",
    combine=_combine,
    parameters=Copa,
    kernel=_kernel,
    min_operands=2,
    check=_check,
    plan=_plan,
)
