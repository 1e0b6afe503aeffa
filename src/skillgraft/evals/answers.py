"""Answers of one checkpoint to questions, by greedy decoding, and their scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.data.documents import Question
from skillgraft.data.metrics import METRICS
from skillgraft.evals.likelihood import batches
from skillgraft.evals.retention import measure
from skillgraft.evals.tasks import read_retention
from skillgraft.settings.evaluation import RetentionSettings
from skillgraft.support.progress import Progress
from skillgraft.train.common import count_parameters, load_model, load_tokenizer
from skillgraft.train.precision import bf16_pays, device
from skillgraft.train.prompts import Prompt, as_prompt, encode_prompts


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
    questions: Sequence[Question],
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
    prompts: Sequence[Prompt] | None = None,
) -> tuple[list[str], int]:
    """Return the greedy answers in the questions' order, and the number of tokens that went through the model.

    `prompts` stand in for the questions' closed-book prompts.
    """
    asked = prompts or [as_prompt(tokenizer, question.question) for question in questions]
    sizes = [len(row) for row in encode_prompts(tokenizer, asked, padding=False)["input_ids"]]
    answers = [""] * len(questions)
    tokens = done = 0
    for rows in batches(sizes, batch_size):
        batch = encode_prompts(tokenizer, [asked[i] for i in rows]).to(model.device)
        made = model.generate(
            **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        tokens += made.numel()
        completions = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, completions, strict=True):
            answers[row] = text.strip()
        done += len(rows)
        if progress:
            progress(done, len(questions))
    return answers, tokens


def answer_and_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
    prompts: Sequence[Prompt] | None = None,
) -> dict[str, Any]:
    """Return `answers`, per-question `scores` by metric, and the cost of answering: `seconds`, `flops`."""
    start = time.monotonic()
    answers, tokens = answer(model, tokenizer, questions, max_new_tokens, batch_size, progress, prompts)
    scores = {
        name: [metric(text, q.answers) for text, q in zip(answers, questions, strict=True)]
        for name, metric in METRICS.items()
    }
    seconds = time.monotonic() - start
    return {
        "answers": answers,
        "scores": scores,
        "seconds": seconds,
        "flops": 2.0 * count_parameters(model) * tokens,
    }


def evaluate_checkpoint(
    directory: Path,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    retention: bool | RetentionSettings = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return one model's raw result: that of `answer_and_score`, and of `retention.measure` where that is asked for."""
    measured = read_retention(retention)
    model, tokenizer = load(directory)
    raw = answer_and_score(
        model, tokenizer, questions, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    return raw | (measure(model, tokenizer, measured) if measured else {"retention": []})
