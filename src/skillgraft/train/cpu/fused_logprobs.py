"""Log-probabilities of next tokens from hidden states on the CPU, at the positions that carry loss alone.

    z = f(h Wᵀ + b) / T        logits; f is the model's scale and soft cap, T the temperature
    log p(t) = z_t − log Σ_v exp z_v        H = log Σ_v exp z_v − Σ_v p_v z_v

TRL's trainers take this from `trl.kernels.chunked_logprob`, which is written for Triton. Without Triton it scores every
position, holds the logits of 4,096 positions in several fp32 copies, and multiplies the gradients in fp32, which on a
CPU with bf16 units is four times as slow as in bf16. Here a tile of logits is small, what is elementwise runs over a
few rows that stay in the cache, and products run in the precision of the forward pass. Each gradient is rounded to it
once per `TILE` positions and summed in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl.trainer import utils as trl_utils

from skillgraft.models.precision import device

TILE = 1024
"""Positions whose logits are held at once: 100 MB in bf16 for 49,152 words."""
ROWS = 16
"""Positions that elementwise work takes at once: 3 MB in fp32 for 49,152 words."""

Scored = tuple[Tensor, Tensor | None, None, None, Tensor | None]


class LogProbabilities(torch.autograd.Function):
    """log p, entropy, and whether the target is the likeliest word; the arguments and results are those of TRL."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (positions, width)
        weight: Tensor,  # (words, width)
        bias: Tensor | None,  # (words,)
        targets: Tensor,  # (positions,)
        temperature: float,
        chunk_size: int,
        softcap: float | None = None,
        scale: float = 1.0,
        outputs: tuple[str, ...] = (),
    ) -> Scored:
        """Return log p (positions,), entropy, two that are never asked for, and top-1; None where not in `outputs`.

        Raises:
            ValueError: an output other than `entropy` and `is_top1`.
        """
        if extra := set(outputs) - {"log_probs", "entropy", "is_top1"}:
            raise ValueError(f"{sorted(extra)} cannot be computed here")
        ctx.set_materialize_grads(False)
        ctx.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden.dtype
        ctx.form = (temperature, softcap, scale)
        count = len(targets)
        normaliser, log_p, entropy = hidden.new_empty((3, count), dtype=torch.float32)
        top = torch.empty(count, dtype=torch.bool)
        for start, stop, tile in _tiles(hidden, weight, bias, ctx.dtype):
            for first in range(start, stop, ROWS):
                rows = slice(first, min(first + ROWS, stop))
                z = _logits(tile[rows.start - start : rows.stop - start], *ctx.form)
                largest, best = z.max(-1) if "is_top1" in outputs else (z.amax(-1), None)
                if best is not None:
                    top[rows] = best == targets[rows]
                z.sub_(largest[:, None])
                log_p[rows] = z.gather(-1, targets[rows, None])[:, 0]
                p = z.exp()
                total = p.sum(-1)
                if "entropy" in outputs:
                    entropy[rows] = total.log() - torch.linalg.vecdot(p, z) / total
                normaliser[rows] = total.log() + largest
                log_p[rows] -= total.log()
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser, entropy)
        ctx.mark_non_differentiable(top)
        return (
            log_p,
            entropy if "entropy" in outputs else None,
            None,
            None,
            top if "is_top1" in outputs else None,
        )

    @staticmethod
    def backward(ctx: Any, d_log_p: Tensor | None, d_entropy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden, weight and bias.

        d log p_t / dz_v = [v = t] − p_v        dH / dz_v = −p_v (log p_v + H)
        """
        hidden, weight, bias, targets, normaliser, entropy = ctx.saved_tensors
        d_log_p = torch.zeros_like(normaliser) if d_log_p is None else d_log_p.float()
        temperature, softcap, scale = ctx.form
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        for start, stop, tile in _tiles(hidden, weight, bias, ctx.dtype):
            for first in range(start, stop, ROWS):
                rows = slice(first, min(first + ROWS, stop))
                place = tile[rows.start - start : rows.stop - start]
                z = _logits(place, *ctx.form)
                slope = None if softcap is None else 1 - (z * (temperature / softcap)) ** 2
                log_p = z.sub_(normaliser[rows, None])
                grad = log_p.exp()
                if d_entropy is None:
                    grad.mul_(-d_log_p[rows, None])
                else:
                    log_p.add_(entropy[rows, None]).mul_(d_entropy[rows, None]).add_(d_log_p[rows, None])
                    grad.mul_(log_p).neg_()
                grad.scatter_add_(-1, targets[rows, None], d_log_p[rows, None])
                if slope is not None:
                    grad.mul_(slope)
                place.copy_(grad if scale == temperature else grad.mul_(scale / temperature))
            if d_hidden is not None:
                d_hidden[start:stop] = tile @ weight.to(ctx.dtype)
            if d_weight is not None:
                d_weight += tile.t() @ hidden[start:stop].to(ctx.dtype)
            if d_bias is not None:
                d_bias += tile.sum(0, dtype=torch.float32)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            *(None,) * 6,
        )


def _tiles(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield first, last and raw logits in `dtype` of `TILE` positions after another, in a buffer that is used again."""
    cast = weight.to(dtype).t()
    buffer = hidden.new_empty((min(TILE, len(hidden)), len(weight)), dtype=dtype)
    for start in range(0, len(hidden), TILE):
        stop = min(start + TILE, len(hidden))
        tile = buffer[: stop - start]
        torch.mm(hidden[start:stop].to(dtype), cast, out=tile)
        if bias is not None:
            tile.add_(bias.to(dtype))
        yield start, stop, tile


def _logits(raw: Tensor, temperature: float, softcap: float | None, scale: float) -> Tensor:
    """Return the logits in fp32: scaled, capped, divided by the temperature."""
    z = raw.to(torch.float32, copy=True)
    if softcap is not None:
        return z.mul_(scale / softcap).tanh_().mul_(softcap / temperature)
    return z if scale == temperature else z.mul_(scale / temperature)


@contextmanager
def fast_head() -> Iterator[None]:
    """Let TRL's trainers score by `LogProbabilities`, at positions with a label alone, while on the CPU.

    The two names in TRL 1.16 that this needs are private; in a version without them nothing is changed.
    """
    names = ("_use_triton", "_ChunkedLogProbFunction")
    if device().type != "cpu" or not all(name in vars(trl_utils) for name in names):
        yield
        return
    before = {name: vars(trl_utils)[name] for name in names}
    trl_utils._use_triton = lambda device: True  # asked only whether to leave positions without a label out
    trl_utils._ChunkedLogProbFunction = SimpleNamespace(apply=LogProbabilities.apply)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(trl_utils, name, value)
