"""Storage forms of one parameter's delta: for each, the stored tensors and a pure function back to the delta.

A further form is a function pair and one entry in `FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Float

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DENSE = "dense"
LOWRANK = "lowrank"


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


class Form(NamedTuple):
    """A storage form: the suffixes of its stored tensors' names and the function from them to the fp32 delta."""

    suffixes: tuple[str, ...]
    decode: Callable[..., Tensor]


FORMS: dict[str, Form] = {
    DENSE: Form(("",), decode_dense),
    LOWRANK: Form((".lowrank_a", ".lowrank_b"), decode_lowrank),
}


def stored_names(name: str, form: str) -> tuple[str, ...]:
    """Return the names in `skill.safetensors` that hold the delta of the parameter `name`."""
    return tuple(name + suffix for suffix in FORMS[form].suffixes)


def stored_shapes(form: str, shape: tuple[int, ...], rank: int | None) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of those tensors for a parameter of `shape`, in the order of `stored_names`."""
    if form == LOWRANK and rank is not None:
        return (rank, shape[1]), (shape[0], rank)
    return (shape,)
