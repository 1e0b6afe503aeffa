"""Model stock: the average of fine-tuned models, drawn back to the base by how little they agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


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


def model_stock(vectors: Sequence[Float[Tensor, " n"]], ratio: float) -> Float[Tensor, " n"]:
    """Return t·mean(τᵢ), the change to the base, t from `stock_ratio`; may overwrite `vectors`."""
    total = vectors[0]
    for vector in vectors[1:]:
        total.add_(vector)
    return total.mul_(ratio / len(vectors))
