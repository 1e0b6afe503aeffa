"""Greedy answers of a model to prompts, in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.models.precision import bf16_pays, device
from skillgraft.models.prompts import Prompt, encode_prompts


def batches(lengths: Sequence[int], rows: int, tokens: int = 16384) -> Iterator[list[int]]:
    """Yield indices of like lengths, at most `rows` of them and, padded, at most `tokens` (but at least one)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) == rows or (len(batch) + 1) * lengths[index] > tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def load(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a checkpoint for evaluation, with its tokenizer.

    Weights are held in bf16 where that pays: bf16 autocast would round them just so before every product.
    """
    tokenizer = load_tokenizer(directory)
    return load_model(directory, torch.bfloat16 if bf16_pays() else torch.float32).to(device()).eval(), tokenizer


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[str], int]:
    """Return the greedy answers in the prompts' order, and the number of tokens that went through the model."""
    sizes = [len(row) for row in encode_prompts(tokenizer, prompts, padding=False)["input_ids"]]
    answers = [""] * len(prompts)
    tokens = done = 0
    for rows in batches(sizes, batch_size):
        batch = encode_prompts(tokenizer, [prompts[i] for i in rows]).to(model.device)
        output = model.generate(
            **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        tokens += output.numel()
        completions = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, completions, strict=True):
            answers[row] = text.strip()
        done += len(rows)
        if progress:
            progress(done, len(prompts))
    return answers, tokens
