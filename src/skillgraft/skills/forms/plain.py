"""Deltas stored as they are, and as two factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor


def encode_dense(delta: Float[Tensor, "*shape"], dtype: torch.dtype) -> tuple[Float[Tensor, "*shape"]]:
    """Return the delta cast once to the storage dtype."""
    return (delta.to(dtype),)


def decode_dense(stored: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the stored delta in fp32 (exact for fp32, fp16 and bf16 storage)."""
    return stored.float()


def encode_lowrank(
    a: Float[Tensor, "rank in_features"],
    b: Float[Tensor, "out_features rank"],
    scaling: float,
    dtype: torch.dtype,
) -> tuple[Float[Tensor, "rank in_features"], Float[Tensor, "out_features rank"]]:
    """Return (a, scaling·b), the factors of `scaling · b @ a` (LoRA, arXiv 2106.09685 section 4.1).

    The scaling is multiplied in fp32 and each factor is cast once to the storage dtype.
    """
    return a.float().to(dtype), (b.float() * scaling).to(dtype)


def decode_lowrank(
    a: Float[Tensor, "rank in_features"], b: Float[Tensor, "out_features rank"]
) -> Float[Tensor, "out_features in_features"]:
    """Return `b @ a`, multiplied in fp32."""
    return b.float() @ a.float()
