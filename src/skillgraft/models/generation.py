"""Generation by our own settings alone, and answers out of the tokens that come of it.

Checkpoints carry defaults (`generation_config.json`: a repetition penalty, suppressed words, a sampling temperature)
that Transformers merges into every call. "Greedy" is then not greedy, and RL's rollouts and evaluation differ. Here a
call has what it asks for, and of the checkpoint's file only the tokens that end an answer count.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.models.chat_template import chat_style
from skillgraft.models.reasoning import has_reasoning, without_reasoning

if TYPE_CHECKING:
    from jaxtyping import Int
    from transformers import BatchEncoding


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the checkpoint's and the tokenizer's own."""
    stops = model.generation_config.eos_token_id
    stops = stops if isinstance(stops, list) else [stops]
    return list(dict.fromkeys(stop for stop in (*stops, tokenizer.eos_token_id) if stop is not None))


@contextmanager
def without_defaults(model: PreTrainedModel) -> Iterator[None]:
    """Keep the checkpoint's own generation settings out of `model.generate` meanwhile."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@torch.no_grad()
def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: BatchEncoding, **settings: Any
) -> Int[torch.Tensor, "rows new"]:
    """Return the tokens that follow left-padded prompts, by `settings` alone, ended or padded with the pad token.

    `settings` are arguments of Transformers' `GenerationConfig`; `logits_processor` goes to `generate` itself.
    """
    processors = {name: settings.pop(name) for name in ("logits_processor",) if name in settings}
    config = GenerationConfig(
        eos_token_id=end_tokens(model, tokenizer) or None, pad_token_id=tokenizer.pad_token_id, **settings
    )
    with without_defaults(model):
        output = model.generate(**batch, generation_config=config, **processors)
    return output[:, batch["input_ids"].shape[1] :]


def answer_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return an answer's text without special tokens, surrounding space and reasoning blocks.

    A block that is not closed leaves an empty answer.
    """
    opened = tokenizer.chat_template is not None and chat_style(tokenizer).reasoning
    whole = tokenizer.decode(ids, skip_special_tokens=False)
    if not opened and not has_reasoning(whole):
        return tokenizer.decode(ids, skip_special_tokens=True).strip()
    text = without_reasoning(whole, opened)
    for token in tokenizer.all_special_tokens:
        text = text.replace(token, "")
    return text.strip()
