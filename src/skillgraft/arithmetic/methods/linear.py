"""Linear: a weighted sum or mean of models; with equal weights a model soup (arXiv 2203.05482, section 2).

`linear` is the reference definition and `kernel` what the CPU runs; `test_the_kernels_are_the_definitions` in
`tests/arithmetic/test_methods.py` holds both to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from skillgraft.arithmetic.arrays import Array, weighted_sum
from skillgraft.arithmetic.merge_schema import MergeRecipe
from skillgraft.arithmetic.methods.method import KernelSettings, Mergekit, Method, Parameters, TileContext
from skillgraft.errors import RecipeError

if TYPE_CHECKING:
    from jaxtyping import Float


class Linear(Parameters):
    """`normalize` divides by the sum of the weights."""

    normalize: bool = Field(True, description="divide by the sum of the weights")


def linear(
    models: Sequence[Float[Array, " n"]], weights: Sequence[float], normalize: bool = True
) -> Float[Array, " n"]:
    """Return Σ wᵢ·θᵢ, divided by Σ wᵢ with `normalize`; Σ wᵢ must not be 0 where it divides."""
    total = weighted_sum(models, weights)
    return total / sum(weights) if normalize else total


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return linear(values, tile.weights, tile.parameters.normalize)


def _kernel(tile: TileContext) -> KernelSettings:
    return KernelSettings(tile.weights, divisor=float(sum(tile.weights)) if tile.parameters.normalize else 1.0)


def _check_divisor(weights: Sequence[float], parameters: Linear, where: str) -> None:
    """Raise `RecipeError` where the mean would divide by 0."""
    if parameters.normalize and abs(sum(weights)) < 1e-8:
        raise RecipeError(f"operands: the weights{where} {weights} sum to 0; set parameters.normalize to false")


def check_average(recipe: MergeRecipe) -> None:
    """Raise `RecipeError` for weights of which no average can be taken."""
    weights = [operand.weight for operand in recipe.operands]
    if abs(sum(weights)) < 1e-8:
        raise RecipeError(f"operands: the weights {weights} sum to 0, and {recipe.method} averages; choose others")


def _mergekit(parameters: Linear, _models: Sequence[str], _base: str) -> dict[str, Any]:
    return {"normalize": parameters.normalize}


LINEAR = Method(
    name="linear",
    inputs="models",
    combine=_combine,
    parameters=Linear,
    kernel=_kernel,
    check_weights=_check_divisor,
    mergekit=Mergekit("linear", _mergekit, lists_base=True),
)
