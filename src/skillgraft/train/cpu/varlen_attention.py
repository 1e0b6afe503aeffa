"""Ragged batches without padding on the CPU: sequences lie one after another, and each attends to itself alone.

A batch of sequences of lengths l₁ … l_n is one row of Σ lᵢ tokens. What works token by token (projections, norms, the
output head) sees no padding; attention is computed for each sequence on its own slice, so that no mask is needed and
nothing can leak. A sequence may be a prefix with branches (a prompt with its sampled answers): each branch attends to
the prefix and to itself, and the prefix is computed once for all of them.

Flash attention has such kernels for GPUs; TRL's `padding_free` asks for them. Here `scaled_dot_product_attention` runs
once per sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from skillgraft.errors import TrainingError
from skillgraft.models.precision import device

_TRIAL = 6
"""Tokens of each of the two sequences that a model is tried with."""

RAGGED = "skillgraft_ragged"
"""Name of the attention in Transformers. No mask belongs to it, so Transformers builds none."""

SHORT = 512
"""Up to how many keys `_Attention` is faster than Torch's own; above, it is slower, and takes memory by the square."""


@dataclass(frozen=True)
class Branches:
    """The branches of one prefix: their tokens in the flat row, and the same in a rectangle (branches, longest).

    `spread` is the flat token of each cell, any in the `empty` ones behind a branch's end; `gather` the cell of each
    flat token.
    """

    spread: Tensor
    gather: Tensor
    empty: Tensor
    count: int

    @staticmethod
    def of(lengths: list[int]) -> Branches:
        """Return the branches of `lengths`, which lie one after another."""
        longest = max(lengths)
        inside = torch.arange(longest) < torch.tensor(lengths)[:, None]
        gather = inside.flatten().nonzero()[:, 0]
        spread = torch.zeros(inside.numel(), dtype=torch.long)
        spread[gather] = torch.arange(len(gather))
        return Branches(spread, gather, (~inside.flatten()).nonzero()[:, 0], len(lengths))


class _Spread(torch.autograd.Function):
    """Flat tokens into cells. Empty cells hold a token that is not theirs, and pass no gradient to it."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, branches: Branches) -> Tensor:
        """Return (cells, heads, width) of (tokens, heads, width)."""
        ctx.branches = branches
        return flat.index_select(0, branches.spread)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return each token's gradient: that of its cell."""
        return grad.index_select(0, ctx.branches.gather), None


class _Gather(torch.autograd.Function):
    """Cells into flat tokens."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, branches: Branches) -> Tensor:
        """Return (tokens, heads, width) of (cells, heads, width)."""
        ctx.branches = branches
        return cells.index_select(0, branches.gather)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return each cell's gradient: that of its token, nothing for empty ones."""
        return grad.index_select(0, ctx.branches.spread).index_fill_(0, ctx.branches.empty, 0), None


def ragged_attention(
    module: torch.nn.Module,
    query: Tensor,  # (1, heads, tokens, width)
    key: Tensor,  # (1, key-value heads, tokens, width)
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,  # (sequences + 1,): where each sequence begins, and the end of the last
    branches: list[Branches] | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Return causal attention within each sequence, (1, tokens, heads, width of the values).

    Without `branches` the sequences are all there is; with it they are the prefixes, and the branches of the first lie
    behind the last prefix, then those of the second.

    Raises:
        TrainingError: the batch does not say where its sequences begin, or the model wants more than plain attention.
    """
    if cu_seq_lens_q is None:
        raise TrainingError("ragged attention needs cu_seq_lens_q: where each sequence of the batch begins")
    lengths = cu_seq_lens_q.diff().tolist()
    if (sliding_window or max(lengths)) < max(lengths) or others.get("softcap") or others.get("s_aux") is not None:
        raise TrainingError("ragged attention has no sliding windows, soft caps or sinks")
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (x.to(torch.get_autocast_dtype("cpu")) for x in (query, key, value))
    sizes = lengths + [len(each.gather) for each in branches or []]
    q, k, v = (x.split(sizes, dim=2) for x in (query, key, value))
    count = len(lengths)
    done = [_attend(*each, dropout, scaling) for each in zip(q[:count], k[:count], v[:count], strict=True)]
    for number, each in enumerate(branches or []):
        own_query, own_key, own_value = (_spread(x[count + number], each) for x in (q, k, v))
        keys, values = (
            torch.cat([prefix.expand(each.count, -1, -1, -1), own], dim=2)
            for prefix, own in ((k[number], own_key), (v[number], own_value))
        )
        attended = _attend(own_query, keys, values, dropout, scaling)
        done.append(_Gather.apply(attended.transpose(1, 2).flatten(0, 1), each).transpose(0, 1)[None])
    return torch.cat(done, dim=2).transpose(1, 2), None


def _spread(x: Tensor, branches: Branches) -> Tensor:
    """Return the flat (1, heads, tokens, width) as (branches, heads, longest, width)."""
    return _Spread.apply(x[0].transpose(0, 1), branches).unflatten(0, (branches.count, -1)).transpose(1, 2)


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ · scale + hide) v, in two products each way; the scores are made again for the gradient.

    For short sequences in bf16 on the CPU this is two to three times as fast as Torch's flash attention, at its
    precision: scores and their softmax are in fp32.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, hide: Tensor) -> Tensor:
        """Return (batch, heads, queries, width of v); `hide` (queries, keys) is 0 for keys that are seen, else −∞."""
        p = _probabilities(q, k, scale, hide)
        attended = (p @ v).view(*q.shape[:3], v.shape[-1])
        ctx.save_for_backward(q, k, v, attended, hide)
        ctx.scale = scale
        return attended

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k and v: dS = P ∘ (dP − rowsum(dO ∘ O))."""
        q, k, v, attended, hide = ctx.saved_tensors
        p = _probabilities(q, k, ctx.scale, hide)
        grad = _by_key_head(grad, k)
        wide = grad.float()
        score = (wide @ v.mT.float()).sub_(torch.linalg.vecdot(wide, _by_key_head(attended, k).float())[..., None])
        score = score.mul_(p).mul_(ctx.scale).to(q.dtype)
        return (score @ k).view(q.shape), score.mT @ _by_key_head(q, k), p.mT @ grad, None, None


def _by_key_head(x: Tensor, key: Tensor) -> Tensor:
    """Return (batch, heads, queries, width) as (batch, key heads, heads a key head · queries, width)."""
    return x.reshape(len(x), key.shape[1], -1, x.shape[-1])


def _probabilities(q: Tensor, k: Tensor, scale: float, hide: Tensor) -> Tensor:
    """Return the attention's weights, (batch, key heads, heads a key head · queries, keys)."""
    scores = (_by_key_head(q, k).float() @ k.mT.float()).mul_(scale)
    scores.view(*q.shape[:3], -1).add_(hide)
    return torch.softmax(scores, -1).to(q.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout: float, scale: float | None) -> Tensor:
    """Return causal attention of queries to keys whose last is the last query's own."""
    queries, keys = q.shape[2], k.shape[2]
    if not queries:
        return q.new_empty(*q.shape[:3], v.shape[-1])
    if q.dtype == torch.bfloat16 and keys <= SHORT and not dropout:
        hide = torch.full((queries, keys), -torch.inf).triu_(keys - queries + 1)
        return _Attention.apply(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, hide)
    seen = None if queries == keys else torch.ones(queries, keys, dtype=torch.bool).tril_(keys - queries)
    return scaled_dot_product_attention(
        q, k, v, attn_mask=seen, is_causal=seen is None, dropout_p=dropout, scale=scale, enable_gqa=True
    )


AttentionInterface.register(RAGGED, ragged_attention)


def packs(model: PreTrainedModel | PeftModel) -> bool:
    """Return whether batches of `model` can be packed here: plain attention in every layer, on the CPU.

    What a model says of itself is not all: some decoder layers pass nothing on to their attention, and recurrent ones
    have none. So it is asked once, with two short sequences in one row.
    """
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    stated = (
        device().type == "cpu"
        and model._supports_attention_backend
        and model.config._attn_implementation in ("sdpa", RAGGED)
        and kinds == {"full_attention"}
        and not getattr(text, "sliding_window", None)
        and not getattr(text, "attn_logit_softcapping", None)
    )
    if not stated:
        return False
    if model not in _TRIED:
        _TRIED[model] = _keeps_apart(model)
    return _TRIED[model]


_TRIED: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


@torch.no_grad()
def _keeps_apart(model: PreTrainedModel) -> bool:
    """Return whether the second of two packed sequences is computed as if alone, and not as after the first.

    The error must be under a tenth of the difference that a leak would make.
    """
    ids = torch.arange(3, 3 + 2 * _TRIAL) % model.config.get_text_config().vocab_size
    ids, alone = ids[None], ids[None, _TRIAL:]
    starts = torch.tensor([0, _TRIAL, 2 * _TRIAL], dtype=torch.int32)
    packed = {
        "position_ids": torch.arange(_TRIAL).repeat(2)[None],
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": _TRIAL,
        "max_length_k": _TRIAL,
    }
    before, training = model.config._attn_implementation, model.training
    model.eval()
    try:
        use_attention(model, "sdpa")
        expected = model(input_ids=alone, use_cache=False).logits[0].float()
        leaked = model(input_ids=ids, use_cache=False).logits[0, _TRIAL:].float()
        use_attention(model, RAGGED)
        got = model(input_ids=ids, use_cache=False, **packed).logits[0, _TRIAL:].float()
    except Exception:  # a layer that takes no such arguments, or does not pass them on, fails in its own way
        return False
    finally:
        use_attention(model, before)
        model.train(training)
    return bool((got - expected).norm() <= 0.1 * (leaked - expected).norm())


def use_attention(model: PreTrainedModel | PeftModel, name: str) -> None:
    """Make `model` attend by `name` from now on."""
    (model.get_base_model() if isinstance(model, PeftModel) else model).set_attn_implementation(name)


@contextmanager
def ragged_batches(trainer: SFTTrainer) -> Iterator[None]:
    """Within this context, train on unpadded batches if the model supports it and the settings ask for no packing.

    A batch has the sequences that it would have had, so that loss and gradient are those of the padded batch.
    """
    if trainer.padding_free or not packs(trainer.model):
        yield
        return
    trainer.data_collator = DataCollatorForLanguageModeling(trainer.data_collator.pad_token_id, padding_free=True)
    use_attention(trainer.model, RAGGED)
    try:
        yield
    finally:
        use_attention(trainer.model, "sdpa")
