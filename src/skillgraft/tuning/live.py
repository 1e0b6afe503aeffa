"""Candidates on a live model: the base is loaded once, and each candidate's tensors are computed straight into it.

The numbers are those of `skillgraft merge`, rounded to the dtype that it would store, so a candidate scores what its
checkpoint would score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from skillgraft.arithmetic.injection.live_weights import LiveWeights
from skillgraft.arithmetic.merge_schema import MergeRecipe
from skillgraft.arithmetic.merging import engine_for
from skillgraft.arithmetic.plan import plan_merge
from skillgraft.data.metrics import METRICS
from skillgraft.data.tasks import Question
from skillgraft.evals.answers import closed_book
from skillgraft.evals.likelihood import answer_likelihood
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.models.precision import bf16_pays, device
from skillgraft.tuning.trials import LIKELIHOOD


class LiveModel:
    """The model at `base`, in bf16 where that pays, as in evaluation; `score` first gives it a recipe's weights."""

    def __init__(self, base: Path, metrics: Sequence[str], max_new_tokens: int, batch_size: int, threads: int | None):
        self._tokenizer = load_tokenizer(base)
        self._model = load_model(base, torch.bfloat16 if bf16_pays() else torch.float32).to(device()).eval()
        self._weights = LiveWeights(self._model, engine_for(threads, "cpu"))
        self._metrics, self._max_new_tokens, self._batch_size = metrics, max_new_tokens, batch_size

    def score(self, recipe: MergeRecipe, questions: Sequence[Question]) -> dict[str, list[float]]:
        """Return every metric's value for each question."""
        self._weights.become(plan_merge(recipe))
        by_metric: dict[str, list[float]] = {}
        if any(name in METRICS for name in self._metrics):
            texts, _ = closed_book(self._model, self._tokenizer, questions, self._max_new_tokens, self._batch_size)
            for name in self._metrics:
                if name in METRICS:
                    by_metric[name] = [METRICS[name](text, q.answers) for text, q in zip(texts, questions, strict=True)]
        if LIKELIHOOD in self._metrics:
            rows = min(self._batch_size, 16)  # logits of whole texts: some 50 MB a row
            by_metric[LIKELIHOOD] = answer_likelihood(self._model, self._tokenizer, questions, rows)
        return by_metric
