"""Which questions can teach: those that the model answers sometimes, by sampling before RL starts.

GRPO learns from differences within a group of answers to one question. A question that is never or always answered
gives none (compare dynamic sampling in DAPO, arXiv 2503.14476, section 3.2, which drops such groups during training;
here it is done once, before it, so that no rollout is thrown away later).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig

from skillgraft.data.documents import Question
from skillgraft.data.metrics import containment
from skillgraft.errors import TrainingError
from skillgraft.support.progress import Progress
from skillgraft.support.resume import load_or_compute
from skillgraft.train.precision import device
from skillgraft.train.prompts import encode

RATES = "pass_rates.json"
"""In a round's folder: each question's pass rate, in the order of the questions."""

ROWS = 64
"""Answers sampled at once."""


def answered_sometimes(
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    samples: int,
    args: GRPOConfig,
    workdir: Path,
    progress: Progress | None = None,
) -> list[Question]:
    """Return the questions whose pass rate over `samples` answers, by containment, is neither 0 nor 1.

    The rates are kept in `workdir / RATES`, so that a resumed run trains on the same questions; `load` returns the
    model where they are not there yet.

    Raises:
        TrainingError: no question is left.
    """
    rates = load_or_compute(workdir / RATES, lambda: pass_rates(load(), tokenizer, questions, samples, args, progress))
    kept = [question for question, rate in zip(questions, rates, strict=True) if 0 < rate < 1]
    if not kept:
        raise TrainingError(
            f"rl: of {len(questions)} questions none was answered sometimes in {samples} samples; fine-tune longer on "
            "the documents, raise pass_rate_samples, or set it to 0 to train on all"
        )
    return kept


def in_order(questions: Sequence[Question], chosen: Sequence[Question], order: str, workdir: Path) -> list[Question]:
    """Return `chosen` by the pass rates that `answered_sometimes` kept in `workdir`: "easy_to_hard" or "hard_to_easy".

    Questions with the same rate keep their order; "shuffled" leaves all where they are, for the trainer to draw from.
    """
    if order == "shuffled":
        return list(chosen)
    rates = dict(zip(questions, json.loads((workdir / RATES).read_text()), strict=True))
    return sorted(chosen, key=lambda question: rates[question], reverse=order == "easy_to_hard")


@torch.no_grad()
def pass_rates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    samples: int,
    args: GRPOConfig,
    progress: Progress | None = None,
) -> list[float]:
    """Return each question's share of sampled answers that contain a gold answer, sampled as in training."""
    model = model.to(device()).eval()
    torch.manual_seed(args.seed)
    by_length = sorted(range(len(questions)), key=lambda i: len(questions[i].question))
    rates = [0.0] * len(questions)
    step = max(1, ROWS // samples)
    for start in range(0, len(questions), step):
        rows = by_length[start : start + step]
        batch = encode(tokenizer, [questions[i].question for i in rows]).to(model.device)
        made = model.generate(
            **batch,
            max_new_tokens=args.max_completion_length,
            do_sample=True,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            num_return_sequences=samples,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for place, row in enumerate(rows):
            answers = texts[place * samples : (place + 1) * samples]
            rates[row] = sum(containment(text, questions[row].answers) for text in answers) / samples
        if progress:
            progress(min(start + step, len(questions)), len(questions))
    model.train()
    return rates
