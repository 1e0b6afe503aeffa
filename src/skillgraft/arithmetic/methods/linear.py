"""Weighted sums: of models (`linear`) and of task vectors (`task_arithmetic`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def linear(
    models: Sequence[Float[Tensor, " n"]], weights: Sequence[float], normalize: bool = True
) -> Float[Tensor, " n"]:
    """Return Σ wᵢ·θᵢ, divided by Σ wᵢ with `normalize`; may overwrite `models`.

    With equal weights this is a model soup (arXiv 2203.05482, section 2). Σ wᵢ must not be 0 where it divides.
    """
    total = models[0].mul_(weights[0])
    for model, weight in zip(models[1:], weights[1:], strict=True):
        total.add_(model.mul_(weight))
    return total.div_(sum(weights)) if normalize else total


def task_arithmetic(vectors: Sequence[Float[Tensor, " n"]], weights: Sequence[float]) -> Float[Tensor, " n"]:
    """Return Σ wᵢ·τᵢ, the change to the base; may overwrite `vectors`.

    τᵢ = θᵢ − θ_base (arXiv 2212.04089, section 2); with another model in the base's place, θ_A + λ(θ_B − θ_C).
    """
    total = vectors[0] if weights[0] == 1 else vectors[0].mul_(weights[0])
    for vector, weight in zip(vectors[1:], weights[1:], strict=True):
        total.add_(vector if weight == 1 else vector.mul_(weight))
    return total
