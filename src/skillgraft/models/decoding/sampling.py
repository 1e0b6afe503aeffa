"""Sampling many answers on the CPU: prompts are read once, rows that have ended make room for those that wait.

`generate` of Transformers reads a prompt once for each of its answers, computes every row until the longest has ended,
copies the whole cache for each token, casts weights held in fp32 anew for each token under autocast, and draws a random
number for each word. Here prompts that are equal, and what all prompts begin with, are read once; rows that have ended
leave; a token takes one random number. The distribution is the same; the tokens that a seed gives are others. A row's
random numbers do not depend on when other rows end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from skillgraft.models.decoding.any_model import ModelDecoder
from skillgraft.models.decoding.packed import PackedDecoder, is_packable
from skillgraft.models.diverged import PREDICTIONS, DivergedError

KEEP = 0.8
"""A decoder that cannot refill drops rows once fewer than this share of them is going: dropping copies the cache."""

REFILL = 0.25
"""Rows that wait are read once this share of the places is free: a few prompts at once cost little more than one."""

CACHE_BYTES = 1 << 29
"""Most bytes of keys and values at once, but for a single row."""


class Decoder(Protocol):
    """The next token's logits for rows; those that begin later join where it `refills`."""

    refills: bool
    rows: int

    def admit(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read prompts into new rows; return their logits."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row; return the logits of the next."""

    def keep(self, going: Sequence[bool]) -> list[int]:
        """Drop rows; return which row now stands in each place."""


def warpers(config: GenerationConfig) -> LogitsProcessorList:
    """Return what changes the logits before a token is drawn, in the order in which `generate` does it."""
    settings = (
        (config.temperature, 1.0, TemperatureLogitsWarper),
        (config.top_k, 0, TopKLogitsWarper),
        (config.top_p, 1.0, TopPLogitsWarper),
        (config.min_p, None, MinPLogitsWarper),
    )
    return LogitsProcessorList([kind(value) for value, neutral, kind in settings if value not in (neutral, None)])


def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    ends: Sequence[int],
    length: int,
    warp: LogitsProcessorList | None,
    autocast: AbstractContextManager[None] | None = None,
    *,
    at_once: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """Return an answer to each prompt, up to `length` tokens, the token that ended it included.

    `ends` are the tokens that end an answer; without `warp` the likeliest token is taken. `at_once` is the most rows
    that are computed together (None: as many as the memory for keys and values allows). `progress` gets how many
    answers are whole. `autocast` spans it all, so that weights are cast once.
    """
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), autocast or nullcontext():
            chances = torch.rand(len(prompts), length, dtype=torch.float64)
            decoder, places = _decoder(model, prompts, length, at_once or len(prompts))
            with torch.autocast("cpu", enabled=False) if decoder.refills else nullcontext():
                return _run(decoder, places, prompts, set(ends), length, warp, chances, progress)
    finally:
        model.train(training)


def _run(
    decoder: Decoder,
    places: int,
    prompts: Sequence[Sequence[int]],
    ends: set[int],
    length: int,
    warp: LogitsProcessorList | None,
    chances: Tensor,
    progress: Callable[[int], None],
) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    waiting = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    rows: list[int] = []
    logits = torch.empty(0)
    while waiting or rows:
        free = places - len(rows)
        if waiting and (not rows or (decoder.refills and free >= REFILL * places)):
            new, waiting = waiting[-free:], waiting[:-free]
            read = decoder.admit([prompts[row] for row in new])
            rows, logits = rows + new, torch.cat([logits, read]) if rows else read
        if not torch.isfinite(logits.amax()):  # a word may be ruled out by −infinity, none may be by +infinity or NaN
            raise DivergedError(PREDICTIONS)
        steps = [len(answers[row]) for row in rows]
        token = logits.argmax(-1) if warp is None else draw(warp(None, logits), chances[rows, steps])
        for row, drawn in zip(rows, token.tolist(), strict=True):
            if not answers[row] or answers[row][-1] not in ends:
                answers[row].append(drawn)
        going = [len(answers[row]) < length and answers[row][-1] not in ends for row in rows]
        if not any(going) or sum(going) < len(going) * (1.0 if decoder.refills else KEEP):
            order = decoder.keep(going)
            rows, token = [rows[place] for place in order], token[order]
            progress(len(prompts) - len(waiting) - len(rows))
        if rows:
            logits = decoder.step(token)
    return answers


def _decoder(model: PreTrainedModel, prompts: Sequence[Sequence[int]], length: int, most: int) -> tuple[Decoder, int]:
    """Return what computes the logits, and how many rows at once."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else model.dtype
    config = model.config.get_text_config()
    longest = max(map(len, prompts)) + length
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * config.num_hidden_layers * heads * width * longest * dtype.itemsize
    places = max(1, min(most, len(prompts), CACHE_BYTES // row))
    if not is_packable(model):
        return ModelDecoder(model, length), places
    return PackedDecoder(model, places, longest, dtype, common_prefix(prompts)), places


def common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the tokens that several prompts begin with, at least one less than each has; none of equal prompts."""
    first, last = min(map(list, prompts)), max(map(list, prompts))
    same = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return [] if first == last else first[: min(same, min(map(len, prompts)) - 1)]


def draw(logits: Tensor, chances: Tensor) -> Tensor:
    """Return a token a row: the first whose cumulated probability exceeds the row's uniform number (inverse transform).

    In fp64, so that no word is too unlikely to be counted.
    """
    cumulated = torch.softmax(logits, -1).cumsum(-1, dtype=torch.float64)
    last = cumulated[:, -1:].contiguous()
    places = torch.searchsorted(cumulated, chances[:, None] * last, right=True)
    return torch.minimum(places, torch.searchsorted(cumulated, last))[:, 0]
