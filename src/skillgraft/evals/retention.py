"""Retention: general-knowledge multiple-choice questions scored by likelihood, to see what adapting a model cost it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.evals.likelihood import log_likelihood


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
        contexts = [tokenizer(texts[i][0])["input_ids"] for i in rows]
        endings = [tokenizer(texts[i][1], add_special_tokens=False)["input_ids"] for i in rows]
        scores[rows] = log_likelihood(model, list(zip(contexts, endings, strict=True)))
    normalised = scores / torch.tensor(sizes)
    best: list[float] = []
    for number, item in enumerate(choices):
        mine = [i for i, owner in enumerate(owners) if owner == number]
        best.append(float(int(normalised[mine].argmax()) == item.answer))
    return best
