"""Retention: general-knowledge multiple-choice questions scored by likelihood, to see what adapting a model cost it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Choice:
    """One multiple-choice question; `answer` is the index of the right choice."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


def read_choices() -> list[Choice]:
    """Return the questions that ship with Skillgraft (`evals/retention.jsonl`)."""
    lines = resources.files("skillgraft.evals").joinpath("retention.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    return [Choice(r["id"], r["question"], tuple(r["choices"]), r["answer"]) for r in records]


@torch.no_grad()
def score_choices(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices: Sequence[Choice], batch_size: int = 32
) -> list[float]:
    """Return 1.0 for each question whose right choice has the highest log-likelihood per UTF-8 byte, else 0.0.

    The text is `Question: …\\nAnswer: <choice>`, without a chat template, as the usual harnesses score base models
    (their `acc_norm`). Only the choice's own tokens count.
    """
    texts, owners, sizes = [], [], []
    for number, item in enumerate(choices):
        for choice in item.choices:
            texts.append((f"Question: {item.question}\nAnswer:", f" {choice}"))
            owners.append(number)
            sizes.append(len(choice.encode()))
    scores = torch.empty(len(texts))
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i][0]) + len(texts[i][1]))
    for start in range(0, len(texts), batch_size):
        rows = by_length[start : start + batch_size]
        scores[rows] = _log_likelihood(model, tokenizer, [texts[i] for i in rows])
    normalised = scores / torch.tensor(sizes)
    best: list[float] = []
    for number, item in enumerate(choices):
        mine = [i for i, owner in enumerate(owners) if owner == number]
        best.append(float(int(normalised[mine].argmax()) == item.answer))
    return best


def _log_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> torch.Tensor:
    """Return the summed log-probability (natural log) of each pair's second part after its first, shape (pairs,)."""
    contexts = [tokenizer(context)["input_ids"] for context, _ in pairs]
    endings = [tokenizer(ending, add_special_tokens=False)["input_ids"] for _, ending in pairs]
    width = max(len(c) + len(e) for c, e in zip(contexts, endings, strict=True))
    ids = torch.zeros(len(pairs), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    counted = torch.zeros_like(ids)
    for row, (context, ending) in enumerate(zip(contexts, endings, strict=True)):
        length = len(context) + len(ending)
        ids[row, :length] = torch.tensor(context + ending)
        mask[row, :length] = 1
        counted[row, len(context) : length] = 1
    ids, mask, counted = (t.to(model.device) for t in (ids, mask, counted))
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
    log_probabilities = torch.log_softmax(logits, dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    return (log_probabilities * counted[:, 1:]).sum(dim=1).cpu()
