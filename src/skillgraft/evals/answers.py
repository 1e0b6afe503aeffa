"""Answers of one checkpoint to a domain's tasks, by greedy decoding, and their scores."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.data.tasks import Task
from skillgraft.domains.kind import Domain
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.evals.retention import measure
from skillgraft.evals.tasks import read_retention
from skillgraft.models.answering import answer, load
from skillgraft.models.loading import count_parameters
from skillgraft.models.prompts import Prompt
from skillgraft.settings.evaluation import RetentionSettings
from skillgraft.support.progress import Progress


def closed_book(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    max_new_tokens: int,
    batch_size: int,
    domain: Domain = KNOWLEDGE,
) -> tuple[list[str], int]:
    """Return the greedy answers to the domain's own prompts, and the number of tokens that went through the model."""
    prompts = [domain.prompt(tokenizer, task) for task in tasks]
    return answer(model, tokenizer, prompts, max_new_tokens, batch_size)


def score(answers: Sequence[str], tasks: Sequence[Task], domain: Domain = KNOWLEDGE) -> dict[str, list[float]]:
    """Return every metric of the domain for each answer."""
    return {
        name: [metric(text, task.answers) for text, task in zip(answers, tasks, strict=True)]
        for name, metric in domain.metrics.items()
    }


def answer_and_score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
    prompts: Sequence[Prompt] | None = None,
    domain: Domain = KNOWLEDGE,
) -> dict[str, Any]:
    """Return `answers`, `scores` by metric and task, and the cost of answering: `seconds`, `flops`.

    `prompts` stand in for the domain's own.
    """
    start = time.monotonic()
    inputs = prompts or [domain.prompt(tokenizer, task) for task in tasks]
    answers, tokens = answer(model, tokenizer, inputs, max_new_tokens, batch_size, progress)
    scores = score(answers, tasks, domain)
    seconds = time.monotonic() - start
    return {
        "answers": answers,
        "scores": scores,
        "seconds": seconds,
        "flops": 2.0 * count_parameters(model) * tokens,
    }


def evaluate_checkpoint(
    directory: Path,
    tasks: Sequence[Task],
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
        model, tokenizer, tasks, max_new_tokens=max_new_tokens, batch_size=batch_size, progress=progress
    )
    return raw | (measure(model, tokenizer, measured) if measured else {"retention": []})
