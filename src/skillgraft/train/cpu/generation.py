"""Sampling many answers to few prompts on the CPU: a prompt is read once, and answers that have ended leave the batch.

`generate` of Transformers reads a prompt once for each of its answers, computes every row until the longest has ended,
copies the whole cache for each token, casts weights held in fp32 anew for each token under autocast, and draws 49,152
random numbers a row and token. Here a row's prompt is read once a group and its cache copied, rows that have ended are
dropped, the cache has its room from the start, and a token takes one random number. The distribution is the same; the
tokens that a seed gives are others. A row's random numbers do not depend on when other rows end.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.cache_utils import Cache, DynamicLayer

from skillgraft.train.diverged import PREDICTIONS, DivergedError

KEEP = 0.8
"""Rows are dropped once fewer than this share of those computed is still going: dropping copies the cache."""


class _Roomy(DynamicLayer):
    """A layer's cache with room for `room` more tokens than the first it is given, in the dtype of attention."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write keys and values (rows, heads, tokens, width) behind what is there; return all."""
        before, count = self.get_seq_length(), key_states.shape[-2]
        if not self.is_initialized:
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else key_states.dtype
            self.lazy_initialization(key_states.to(dtype), value_states.to(dtype))
            self.store = [
                torch.empty(*x.shape[:2], count + self.room, x.shape[-1], dtype=dtype)
                for x in (key_states, value_states)
            ]
        for store, new in zip(self.store, (key_states, value_states), strict=True):
            store[:, :, before : before + count] = new
        self._show(before + count)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, which may repeat."""
        length = self.get_seq_length()
        self.store = [store.index_select(0, indices) for store in self.store]
        self._show(length)

    def _show(self, length: int) -> None:
        self.keys, self.values = (store[:, :, :length] for store in self.store)


def warpers(config: GenerationConfig) -> LogitsProcessorList:
    """Return what changes the logits before a token is drawn, in the order in which `generate` does it."""
    settings = (
        (config.temperature, 1.0, TemperatureLogitsWarper),
        (config.top_k, 0, TopKLogitsWarper),
        (config.top_p, 1.0, TopPLogitsWarper),
        (config.min_p, None, MinPLogitsWarper),
    )
    return LogitsProcessorList([kind(value) for value, neutral, kind in settings if value not in (neutral, None)])


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    length: int,
    warp: LogitsProcessorList | None,
    autocast: AbstractContextManager[None] | None = None,
) -> list[list[int]]:
    """Return an answer to each prompt, up to `length` tokens, the token that ended it included.

    `ends` are the tokens that end an answer; without `warp` the likeliest token is taken. Equal prompts are read once.
    `autocast` spans the whole, so that weights are cast once.
    """
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    ids, mask = (
        pad_sequence([make(prompt) for prompt in places], batch_first=True, padding_side="left")
        for make in (torch.tensor, lambda prompt: torch.ones(len(prompt), dtype=torch.long))
    )
    rows = torch.arange(len(prompts))
    read = torch.tensor([places[tuple(prompt)] for prompt in prompts])
    chances = torch.rand(len(prompts), length, dtype=torch.float64)
    stops = torch.tensor(list(ends))
    tokens: list[list[int]] = [[] for _ in prompts]
    cache = Cache(layers=[_Roomy(length) for _ in range(model.config.get_text_config().num_hidden_layers)])
    training = model.training
    model.eval()
    try:
        with autocast or nullcontext():
            position = (mask.cumsum(-1) - 1).clamp(min=0)
            logits = _next(model, ids, mask, position, cache)[read]
            cache.batch_select_indices(read)
            mask, going = mask[read], torch.ones(len(prompts), dtype=torch.bool)
            for step in range(length):
                token = logits.argmax(-1) if warp is None else draw(warp(None, logits), chances[rows, step])
                for row, drawn, on in zip(rows.tolist(), token.tolist(), going.tolist(), strict=True):
                    if on:
                        tokens[row].append(drawn)
                going &= ~torch.isin(token, stops)
                if step + 1 == length or not going.any():
                    break
                if going.float().mean() < KEEP:
                    unfinished = going.nonzero()[:, 0]
                    cache.batch_select_indices(unfinished)
                    rows, token, mask, going = (x[unfinished] for x in (rows, token, mask, going))
                mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
                logits = _next(model, token[:, None], mask, mask.sum(-1, keepdim=True) - 1, cache)
    finally:
        model.train(training)
    return tokens


def _next(model: PreTrainedModel, ids: Tensor, mask: Tensor, position: Tensor, cache: Cache) -> Tensor:
    """Return the logits of the next token, (rows, words) in fp32."""
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": position, "past_key_values": cache}
    logits = model(**inputs, use_cache=True, logits_to_keep=1).logits[:, -1].float()
    if not torch.isfinite(logits.amax()):  # a word may be ruled out by −infinity, none may be by +infinity or NaN
        raise DivergedError(PREDICTIONS)
    return logits


def draw(logits: Tensor, chances: Tensor) -> Tensor:
    """Return a token a row: the first whose cumulated probability exceeds the row's uniform number (inverse transform).

    In fp64, so that no word is too unlikely to be counted.
    """
    cumulated = torch.softmax(logits, -1).cumsum(-1, dtype=torch.float64)
    last = cumulated[:, -1:].contiguous()
    places = torch.searchsorted(cumulated, chances[:, None] * last, right=True)
    return torch.minimum(places, torch.searchsorted(cumulated, last))[:, 0]
