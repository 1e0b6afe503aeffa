"""Norms in fp64, and random tensors of a given norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def gaussian_like(shape: tuple[int, ...], norm: float, generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Return an fp32 tensor of independent Gaussians, rescaled to the Frobenius norm `norm`."""
    direction = torch.randn(shape, generator=generator, dtype=torch.float32)
    length = frobenius_norm(direction)
    return direction * (norm / length) if length > 0 else direction


def gaussian_factors(
    shape: tuple[int, int], rank: int, norm: float, generator: torch.Generator
) -> tuple[Float[Tensor, "rank in_features"], Float[Tensor, "out_features rank"]]:
    """Return Gaussian factors (a, b) of fp32, rescaled so that ‖b @ a‖_F is `norm`."""
    a = torch.randn((rank, shape[1]), generator=generator, dtype=torch.float32)
    b = torch.randn((shape[0], rank), generator=generator, dtype=torch.float32)
    length = product_norm(a, b)
    return a, b * (norm / length) if length > 0 else b


def frobenius_norm(tensor: Tensor) -> float:
    """Return ‖tensor‖_F, summed in fp64."""
    return sum_of_squares(tensor) ** 0.5


def product_norm(a: Float[Tensor, "rank in_features"], b: Float[Tensor, "out_features rank"]) -> float:
    """Return ‖b @ a‖_F = sqrt(tr((bᵀb)(aaᵀ))) in fp64, without forming the product."""
    a, b = a.double(), b.double()
    return max(torch.sum((b.T @ b) * (a @ a.T)).item(), 0.0) ** 0.5


def sum_of_squares(tensor: Tensor) -> float:
    """Return the sum of squares in fp64, in chunks so that no fp64 copy of a whole tensor is held."""
    return sum(chunk.double().square().sum().item() for chunk in tensor.reshape(-1).split(_CHUNK_ELEMENTS))


def sum_of_squared_differences(one: Tensor, other: Tensor) -> float:
    """Return the sum of squares of `one` − `other`, subtracted in fp32 and summed as `sum_of_squares` does."""
    pairs = zip(*(tensor.reshape(-1).split(_CHUNK_ELEMENTS) for tensor in (one, other)), strict=True)
    return sum((a.float() - b.float()).double().square().sum().item() for a, b in pairs)


def product_error(
    a: Float[Tensor, "rank in_features"], b: Float[Tensor, "out_features rank"], exact: Float[Tensor, "out in"]
) -> float:
    """Return ‖b @ a − exact‖² as `sum_of_squared_differences` does, the product by blocks of rows."""
    step = max(1, _CHUNK_ELEMENTS // exact.shape[1])
    blocks = (b[first : first + step] @ a - exact[first : first + step] for first in range(0, len(b), step))
    return sum(torch.linalg.vector_norm(block, dtype=torch.float64).item() ** 2 for block in blocks)


_CHUNK_ELEMENTS = 1 << 20
