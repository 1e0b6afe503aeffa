"""Closed-book answers of one checkpoint, by greedy decoding, and their scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.domains.knowledge import Question
from skillgraft.evals.metrics import METRICS
from skillgraft.evals.retention import read_choices, score_choices
from skillgraft.train.common import count_parameters, load_model, load_tokenizer
from skillgraft.train.precision import bf16_pays, device
from skillgraft.train.prompts import encode


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_new_tokens: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[str], int]:
    """Return the greedy answers in the questions' order, and the number of tokens that went through the model."""
    by_length = sorted(range(len(questions)), key=lambda i: len(questions[i].question))
    answers = [""] * len(questions)
    tokens = 0
    for start in range(0, len(questions), batch_size):
        rows = by_length[start : start + batch_size]
        batch = encode(tokenizer, [questions[i].question for i in rows]).to(model.device)
        made = model.generate(
            **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        tokens += made.numel()
        completions = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, completions, strict=True):
            answers[row] = text.strip()
        if progress:
            progress(min(start + batch_size, len(questions)), len(questions))
    return answers, tokens


def evaluate_checkpoint(
    directory: Path,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    retention: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Return one model's raw result: `answers`, per-question `scores` by metric, `retention` per item, cost.

    Weights are held in bf16 where that pays: bf16 autocast would round them just so before every product.
    """
    start = time.monotonic()
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, torch.bfloat16 if bf16_pays() else torch.float32).to(device()).eval()
    answers, tokens = answer(model, tokenizer, questions, max_new_tokens, batch_size, progress)
    scores = {
        name: [metric(text, q.answers) for text, q in zip(answers, questions, strict=True)]
        for name, metric in METRICS.items()
    }
    return {
        "answers": answers,
        "scores": scores,
        "retention": score_choices(model, tokenizer, read_choices()) if retention else [],
        "seconds": time.monotonic() - start,
        "flops": 2.0 * count_parameters(model) * tokens,
    }
