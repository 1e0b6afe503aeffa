"""TIES: trim each task vector, elect a sign per element, average what agrees with it (arXiv 2306.01708, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def trim(vector: Float[Tensor, " n"], threshold: float) -> Float[Tensor, " n"]:
    """Set the elements of `vector` whose magnitude in fp32 is below `threshold` to zero, in place; ties are kept."""
    return vector.mul_(vector.float().abs() >= threshold)


def elect_and_average(
    vectors: Sequence[Float[Tensor, " n"]], weights: Sequence[float], normalize: bool = True
) -> Float[Tensor, " n"]:
    """Return the sum of the weighted vectors' elements that have the elected sign; may overwrite `vectors`.

    The sign is that of Σ wᵢ·τᵢ (+ for a sum of exactly 0). With `normalize` the sum is divided by the sum of |wᵢ| of
    those that agree (the paper's disjoint mean; the paper has no weights, and a negative one must stay negative).
    """
    import torch

    weighted = [vector.mul_(weight) for vector, weight in zip(vectors, weights, strict=True)]
    total = weighted[0].clone()
    for vector in weighted[1:]:
        total.add_(vector)
    sign = torch.copysign(torch.ones((), dtype=total.dtype, device=total.device), total)
    divisor = None
    for number, (vector, weight) in enumerate(zip(weighted, weights, strict=True)):
        agreeing = vector.mul_(sign).clamp_min_(0)  # magnitudes, 0 where the sign is not the elected one
        if normalize:
            share = torch.sign(agreeing)
            share = share if weight == 1 else share.mul_(abs(weight))
            divisor = share if divisor is None else divisor.add_(share)
        total = agreeing if number == 0 else total.add_(agreeing)
    total.mul_(sign)
    if divisor is not None:
        total.div_(divisor.masked_fill_(divisor.abs() < 1e-8, 1.0))
    return total


def ties(
    vectors: Sequence[Float[Tensor, " n"]],
    weights: Sequence[float],
    thresholds: Sequence[float],
    normalize: bool = True,
    scale: float = 1.0,
) -> Float[Tensor, " n"]:
    """Return λ·(disjoint mean of the trimmed vectors), the change to the base; may overwrite `vectors`.

    `thresholds` are the magnitudes (fp32) of the smallest element that each vector keeps. The paper weighs all vectors
    alike (weights of 1) and scales the mean by λ (`scale`).
    """
    trimmed = [trim(vector, threshold) for vector, threshold in zip(vectors, thresholds, strict=True)]
    merged = elect_and_average(trimmed, weights, normalize)
    return merged if scale == 1 else merged.mul_(scale)
