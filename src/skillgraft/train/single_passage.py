"""One passage at a time: an adapter (or all weights) learnt on it, and the models that skills make of it, in memory.

Two models are held, each loaded once: one that learns, in fp32 as a fine-tuning stage does, and one that answers, in
the dtype of evaluation. What was learnt and skills are added in one pass of the merging engine, as
θ_start + Δ_passage + Σ λ·v rounded once to fp32: what fine-tuning and injecting by files give, up to their roundings.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from skillgraft.adapters.kind import Adapter
from skillgraft.arithmetic.injection.live_weights import LiveWeights
from skillgraft.arithmetic.merge_recipe import parse_merge_recipe
from skillgraft.arithmetic.merging import engine_for
from skillgraft.arithmetic.plan import plan_merge
from skillgraft.data.passages import Passage
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.models.precision import bf16_pays, device
from skillgraft.models.saving import check_finite
from skillgraft.settings.text import TextSettings
from skillgraft.support.progress import Progress
from skillgraft.train.examples import document_rows
from skillgraft.train.plan_checks import check_end_token
from skillgraft.train.sft import Trained, fit, sft_arguments

LEARNING = "learning"
"""Folder of the trainer's checkpoints and log for the passage that is learnt just now."""


class Learner:
    """The model that learns: `learn` leaves it as it was before."""

    def __init__(
        self,
        start: Path,
        work: Path,
        *,
        adapter: Adapter | None,
        trainer: Mapping[str, Any],
        text: TextSettings,
        seed: int,
        checkpoint_seconds: float,
    ) -> None:
        self._start, self._work = start, work
        self._adapter, self._trainer, self._text = adapter, trainer, text
        self._seed, self._checkpoint_seconds = seed, checkpoint_seconds
        self._tokenizer = load_tokenizer(start)
        check_end_token(self._tokenizer, "single_passage")
        self._model: Any = None

    def learn(self, number: int, passage: Passage, progress: Progress | None = None) -> tuple[Trained, dict[str, str]]:
        """Fine-tune on the passage's renderings; return the cost, and what was learnt as an operand of a merge.

        Interrupted learning resumes from its newest trainer checkpoint. The operand lies in the working folder
        until `forget`.
        """
        for old in self._work.glob(f"{LEARNING}-*"):
            if old.name != f"{LEARNING}-{number}":
                shutil.rmtree(old)
        work = self._work / f"{LEARNING}-{number}"
        work.mkdir(exist_ok=True)
        args = sft_arguments(self._trainer, work, self._seed)
        rows = document_rows(self._tokenizer, passage.renderings, args.max_length, self._text)
        if self._model is None:
            self._model = load_model(self._start)
        fitted, trained = fit(
            self._model,
            self._tokenizer,
            rows,
            args,
            adapter=self._adapter,
            checkpoint_seconds=self._checkpoint_seconds,
            progress=progress,
        )
        check_finite(fitted)
        learnt = work / "learnt"
        shutil.rmtree(learnt, ignore_errors=True)
        fitted.save_pretrained(str(learnt))
        if self._adapter is None:
            self._tokenizer.save_pretrained(str(learnt))
            self._model = None  # full fine-tuning changed it for good
            return trained, {"model": str(learnt)}
        self._model = fitted.unload()
        return trained, {"adapter": str(learnt)}

    def forget(self) -> None:
        """Discard what was learnt."""
        for folder in self._work.glob(f"{LEARNING}-*"):
            shutil.rmtree(folder)


class Answerer:
    """The model that answers; `become` makes it the start with what was learnt and skills added."""

    def __init__(self, start: Path) -> None:
        self._start = start
        self.tokenizer = load_tokenizer(start)
        self.model = load_model(start, torch.bfloat16 if bf16_pays() else torch.float32).to(device()).eval()
        self._weights = LiveWeights(self.model, engine_for(None, "cpu"))

    def become(self, operands: Sequence[Mapping[str, Any]]) -> None:
        """Take the weights θ_start + Σ weight · operand; `operands` as in a merge recipe, at least one."""
        data = {"method": "task_arithmetic", "base": str(self._start), "operands": list(operands), "dtype": "float32"}
        self._weights.become(plan_merge(parse_merge_recipe(data, "single_passage")))
