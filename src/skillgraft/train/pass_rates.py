"""Pass rates: sample each task before RL, and keep those that are solved sometimes.

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

from skillgraft.data.tasks import Task
from skillgraft.domains.kind import Domain
from skillgraft.errors import TrainingError
from skillgraft.models.answering import batches
from skillgraft.models.decoding.packed import is_packable
from skillgraft.models.decoding.sampling import sample, warpers
from skillgraft.models.generation import answer_text, end_tokens, generate
from skillgraft.models.precision import device
from skillgraft.models.prompts import Prompt, encode_prompts, prompt_ids
from skillgraft.support.progress import Progress, silent
from skillgraft.support.resume import load_or_compute

RATES = "pass_rates.json"
"""In a round's folder: each question's pass rate, in the order of the questions."""

ROWS = 64
"""Answers sampled at once."""


def answered_sometimes(
    load: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    domain: Domain,
    samples: int,
    args: GRPOConfig,
    workdir: Path,
    progress: Progress | None = None,
) -> list[Task]:
    """Return the tasks whose pass rate over `samples` answers, by `domain.solved`, is neither 0 nor 1.

    The rates are kept in `workdir / RATES`, so that a resumed run trains on the same questions; `load` returns the
    model where they are not there yet.

    Raises:
        TrainingError: no question is left.
    """
    rates = load_or_compute(
        workdir / RATES, lambda: pass_rates(load(), tokenizer, tasks, domain, samples, args, progress)
    )
    chosen = [task for task, rate in zip(tasks, rates, strict=True) if 0 < rate < 1]
    if not chosen:
        raise TrainingError(
            f"rl: of {len(tasks)} questions none was answered sometimes in {samples} samples; fine-tune longer on "
            "the documents, raise pass_rate_samples, or set it to 0 to train on all"
        )
    return chosen


def in_order(tasks: Sequence[Task], chosen: Sequence[Task], order: str, workdir: Path) -> list[Task]:
    """Return `chosen` by the pass rates that `answered_sometimes` kept in `workdir`: "easy_to_hard" or "hard_to_easy".

    Tasks with the same rate keep their order; "shuffled" leaves all where they are, for the trainer to draw from.
    """
    if order == "shuffled":
        return list(chosen)
    rates = dict(zip(tasks, json.loads((workdir / RATES).read_text()), strict=True))
    return sorted(chosen, key=lambda task: rates[task], reverse=order == "easy_to_hard")


@torch.no_grad()
def pass_rates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    domain: Domain,
    samples: int,
    args: GRPOConfig,
    progress: Progress | None = None,
) -> list[float]:
    """Return each task's share of sampled answers that solve it, sampled as in training."""
    model = model.to(device()).eval()
    torch.manual_seed(args.seed)
    prompts = [domain.prompt(tokenizer, task) for task in tasks]
    draw = _sample if is_packable(model) and args.repetition_penalty == 1 else _generate
    answers = draw(model, tokenizer, prompts, samples, args, progress or silent)
    model.train()
    return [
        sum(domain.solved(answer_text(tokenizer, ids), task.answers) for ids in of_task) / samples
        for task, of_task in zip(tasks, answers, strict=True)
    ]


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    samples: int,
    args: GRPOConfig,
    progress: Progress,
) -> list[list[list[int]]]:
    """Return `samples` answers to each prompt as token ids, which is read once for all of them."""
    ids = [row for row in prompt_ids(tokenizer, prompts) for _ in range(samples)]
    drawn = sample(
        model,
        ids,
        end_tokens(model, tokenizer),
        args.max_completion_length,
        warpers(args),
        at_once=ROWS,
        progress=lambda done: progress(done // samples, len(prompts)),
    )
    return [drawn[start : start + samples] for start in range(0, len(drawn), samples)]


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    samples: int,
    args: GRPOConfig,
    progress: Progress,
) -> list[list[list[int]]]:
    """Return the same by Transformers' own `generate`, for models and settings that `sample` does not know."""
    sizes = list(map(len, prompt_ids(tokenizer, prompts)))
    answers: list[list[list[int]]] = [[] for _ in prompts]
    done = 0
    for rows in batches(sizes, max(1, ROWS // samples)):
        output = generate(
            model,
            tokenizer,
            encode_prompts(tokenizer, [prompts[row] for row in rows]).to(model.device),
            max_new_tokens=args.max_completion_length,
            do_sample=True,
            temperature=args.temperature,
            top_p=args.top_p,
            top_k=args.top_k,
            min_p=args.min_p,
            repetition_penalty=args.repetition_penalty,
            num_return_sequences=samples,
        ).tolist()
        for place, row in enumerate(rows):
            answers[row] = output[place * samples : (place + 1) * samples]
        done += len(rows)
        progress(done, len(prompts))
    return answers
