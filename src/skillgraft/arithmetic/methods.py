"""The arithmetic of skill vectors: pure functions of tensors, fp32 inside, one final cast.

Formulas: Parametric Skill Transfer, arXiv 2601.11258 section 3 (v = θ_RL − θ_SFT, θ = θ_target + λ·v).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def difference(rl: Float[Tensor, "*shape"], sft: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return v = θ_RL − θ_SFT in fp32 (fp64 operands are subtracted in fp64 first).

    Exact for bf16 and fp16 operands whose exponents are close, else rounded once to fp32.
    """
    wide = _wide_dtype(rl, sft)
    return (rl.to(wide) - sft.to(wide)).float()


def add_scaled(
    target: Float[Tensor, "*shape"],
    delta: Float[Tensor, "*shape"],
    scale: float,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "*shape"]:
    """Return θ_target + λ·v, computed in fp32 (fp64 for an fp64 target) and cast once to `dtype`.

    `dtype` is the target's when None. A scale of 0 returns the target's values untouched, bit for bit when the dtype
    is its own.
    """
    dtype = dtype or target.dtype
    if scale == 0:
        return target.to(dtype)
    wide = _wide_dtype(target)
    # Two operations, not torch.add(alpha=...): that fuses in vector code but not at a row's end, so that a result
    # would depend on where a chunk ends.
    return (target.to(wide) + delta.to(wide) * scale).to(dtype)


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


def rounding_loss(
    stored: Float[Tensor, "*shape"], target: Float[Tensor, "*shape"], delta: Float[Tensor, "*shape"], scale: float
) -> tuple[float, float]:
    """Return (‖stored − (θ_target + λ·v)‖², ‖λ·v‖²), both in fp64 throughout."""
    lost = wanted = 0.0
    flat = (tensor.reshape(-1).split(_CHUNK_ELEMENTS) for tensor in (stored, target, delta))
    for stored_part, target_part, delta_part in zip(*flat, strict=True):
        step = delta_part.double() * scale
        lost += (stored_part.double() - (target_part.double() + step)).square().sum().item()
        wanted += step.square().sum().item()
    return lost, wanted


_CHUNK_ELEMENTS = 1 << 20


def _wide_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
