"""Model stock: the average of fine-tuned models, drawn back to the base by how little they agree (arXiv 2403.19522).

`model_stock` is the reference definition and `kernel` what the CPU runs; `test_the_kernels_are_the_definitions` in
`tests/arithmetic/test_methods.py` holds both to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from skillgraft.arithmetic.arrays import Array, weighted_sum
from skillgraft.arithmetic.methods.method import KernelSettings, Mergekit, Method, Parameters, Statistic, TileContext

if TYPE_CHECKING:
    from jaxtyping import Float

    from skillgraft.arithmetic.buffers import Buffers
    from skillgraft.arithmetic.plan_types import TensorPlan


class ModelStock(Parameters):
    """No parameters: the angle between the vectors decides."""


def stock_ratio(gram: Sequence[Sequence[float]]) -> float:
    """Return t = N·cos θ / (1 + (N − 1)·cos θ) from the vectors' Gram matrix, cos θ the mean over their pairs.

    arXiv 2403.19522, equation 5 (N = 2) and appendix (any N). A vector that is zero agrees with nothing: cosine 0.
    """
    number = len(gram)
    pairs = [(i, j) for i in range(number) for j in range(i + 1, number)]
    norms = [max(gram[i][i], 0.0) ** 0.5 for i in range(number)]
    cosines = [gram[i][j] / (norms[i] * norms[j]) if norms[i] * norms[j] > 0 else 0.0 for i, j in pairs]
    cosine = sum(cosines) / len(cosines)
    divisor = 1.0 + (number - 1) * cosine
    return number * cosine / divisor if abs(divisor) > 1e-12 else 0.0


def model_stock(vectors: Sequence[Float[Array, " n"]], ratio: float) -> Float[Array, " n"]:
    """Return t·mean(τᵢ), the change to the base, t from `stock_ratio`."""
    return weighted_sum(vectors, [1.0] * len(vectors)) * (ratio / len(vectors))


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return model_stock(values, stock_ratio(tile.statistics))


def _kernel(tile: TileContext) -> KernelSettings:
    return KernelSettings(tile.weights, factor=stock_ratio(tile.statistics) / len(tile.weights))


def _grams(
    tensors: Sequence[TensorPlan], _parameters: ModelStock, thread_buffers: Sequence[Buffers]
) -> dict[str, list[list[float]]]:
    from skillgraft.arithmetic.statistics.gram import gram_matrices

    return gram_matrices(tensors, thread_buffers)


def _mergekit(_parameters: ModelStock, _models: Sequence[str], _base: str) -> dict[str, Any]:
    return {}


MODEL_STOCK = Method(
    name="model_stock",
    inputs="vectors",
    combine=_combine,
    parameters=ModelStock,
    kernel=_kernel,
    statistics=Statistic(_grams, passes=1),
    weighted=False,
    min_operands=2,
    mergekit=Mergekit("model_stock", _mergekit),
)
