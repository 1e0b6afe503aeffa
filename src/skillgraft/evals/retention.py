"""Retention: multiple-choice tasks scored by likelihood, to see what adapting a model cost it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.evals.likelihood import log_likelihood
from skillgraft.evals.perplexity import score_text
from skillgraft.evals.tasks import Item, Retention, metrics_of
from skillgraft.models.answering import batches
from skillgraft.models.loading import context_length, count_parameters
from skillgraft.models.prompts import text_ids

Kept = Callable[[str, Callable[[], Any]], Any]
"""Returns what was computed under a name before a kill, else computes and keeps it."""


@torch.no_grad()
def choice_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[Item],
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[list[float]], int]:
    """Return the summed log-likelihood (natural log) of each item's choices, and the tokens that were computed.

    The text is prompt, space, choice, without a chat template. As in lm-evaluation-harness it is cut into tokens as a
    whole, the choice being what follows the prompt's own tokens, and what does not fit into the model's context is
    left out at its beginning; spaces at a prompt's end belong to the choice. `progress` gets how many items are done.
    """
    longest = context_length(model)
    pairs, owners = [], []
    for number, item in enumerate(items):
        prompt = len(text_ids(tokenizer, item.prompt.rstrip()))
        for choice in item.choices:
            whole = text_ids(tokenizer, f"{item.prompt} {choice}")
            split = min(prompt, len(whole) - 1)
            pairs.append((whole[max(len(whole) - 1 - longest, 0) : split], whole[split:]))
            owners.append(number)
    likelihoods: list[list[float]] = [[] for _ in items]
    totals = [0.0] * len(pairs)
    tokens = done = 0
    for rows in batches([len(context) + len(ending) for context, ending in pairs], batch_size):
        batch = [pairs[i] for i in rows]
        for row, total in zip(rows, log_likelihood(model, batch).tolist(), strict=True):
            totals[row] = total
        tokens += len({(*c, *e[:-1]) for c, e in batch}) * max(len(c) + len(e) - 1 for c, e in batch)
        done += len(rows)
        progress(done * len(items) // len(pairs))
    for owner, total in zip(owners, totals, strict=True):
        likelihoods[owner].append(total)
    return likelihoods, tokens


def accuracies(items: Sequence[Item], likelihoods: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Return 1.0 or 0.0 an item by metric: whether the right choice has the highest score, the first of equal ones.

    acc: the log-likelihood; acc_norm: the log-likelihood a character of the choice's text, as in
    lm-evaluation-harness. NaN counts as wrong.
    """
    normalised = [
        [total / len(text) for total, text in zip(totals, item.choices, strict=True)]
        for item, totals in zip(items, likelihoods, strict=True)
    ]
    return {
        metric: [_right(item.answer, scores) for item, scores in zip(items, by_item, strict=True)]
        for metric, by_item in (("acc", likelihoods), ("acc_norm", normalised))
    }


def _right(answer: int, scores: Sequence[float]) -> float:
    return float(not any(map(math.isnan, scores)) and scores.index(max(scores)) == answer)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    retention: Retention,
    *,
    kept: Kept = lambda name, compute: compute(),
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Return what a model retains: `retention` (1.0 or 0.0 an item, all tasks one after the other), `tasks`, `text`.

    `tasks` maps each task to its metrics' scores by item, the one that `retention` takes first; `text` is what
    `held_out.score_text` returns, None without text. `retention_seconds` and `retention_flops` are the cost.
    """
    tasks: dict[str, Mapping[str, list[float]]] = {}
    seconds = tokens = before = 0
    for name, items in retention.tasks.items():

        def score(name: str = name, items: list[Item] = items, before: int = before) -> dict[str, Any]:
            start = time.monotonic()
            likelihoods, used = choice_likelihoods(
                model, tokenizer, items, progress=lambda done: progress(before + done)
            )
            scores = accuracies(items, likelihoods)
            by_metric = {metric: scores[metric] for metric in metrics_of(name)}
            return {"scores": by_metric, "tokens": used, "seconds": time.monotonic() - start}

        part = kept(f"task-{name}", score)
        tasks[name] = part["scores"]
        seconds, tokens, before = seconds + part["seconds"], tokens + part["tokens"], before + len(items)
        progress(before)
    text = None
    if retention.text:
        part = kept("text", lambda: score_text(model, tokenizer, retention))
        seconds, tokens, text = seconds + part.pop("seconds"), tokens + part.pop("computed"), part
    return {
        "retention": [score for by_metric in tasks.values() for score in next(iter(by_metric.values()))],
        "tasks": tasks,
        "text": text,
        "retention_seconds": seconds,
        "retention_flops": 2.0 * count_parameters(model) * tokens,
    }
