"""Greedy answers of a model to prompts, in batches of like length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.models.decoding.packed import is_packable
from skillgraft.models.decoding.sampling import sample
from skillgraft.models.diverged import explained_predictions
from skillgraft.models.generation import answer_text, end_tokens, generate
from skillgraft.models.loading import context_length, load_model, load_tokenizer
from skillgraft.models.precision import bf16_pays, device
from skillgraft.models.prompts import Prompt, check_prompts_fit, encode_prompts, prompt_ids


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
    """Return the greedy answers in the prompts' order, and the number of tokens that went through the model.

    Raises `DataError` for a prompt that does not fit with its answer into the model's context.
    """
    ids = prompt_ids(tokenizer, prompts)
    sizes = [len(row) for row in ids]
    check_prompts_fit(sizes, max_new_tokens, context_length(model), "questions")
    report = (lambda done: progress(done, len(prompts))) if progress else (lambda done: None)
    if is_packable(model) and prompts:
        ends = end_tokens(model, tokenizer)
        with explained_predictions(model.name_or_path):
            sampled = sample(model, ids, ends, max_new_tokens, None, at_once=batch_size, progress=report)
        return [answer_text(tokenizer, row) for row in sampled], sum(sizes) + sum(map(len, sampled))
    answers = [""] * len(prompts)
    tokens = done = 0
    for rows in batches(sizes, batch_size):
        batch = encode_prompts(tokenizer, [prompts[i] for i in rows]).to(model.device)
        output = generate(model, tokenizer, batch, max_new_tokens=max_new_tokens, do_sample=False)
        tokens += batch["input_ids"].numel() + output.numel()
        for row, ids in zip(rows, output.tolist(), strict=True):
            answers[row] = answer_text(tokenizer, ids)
        done += len(rows)
        report(done)
    return answers, tokens
