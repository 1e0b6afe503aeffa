"""The rows of an eval stage: each model closed-book with its retention, then those with more in the prompt.

Whatever takes long is kept in the working folder as soon as it is there: a row's answers, each task of its retention,
its held-out text. A stage that goes on after a kill computes nothing of it again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.data.documents import Document
from skillgraft.data.retrieval import recall
from skillgraft.data.tasks import Task
from skillgraft.domains.kind import Domain
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.evals.answers import answer_and_score
from skillgraft.evals.in_context import as_context, draw_examples, find_chunks, read_examples
from skillgraft.evals.retention import measure
from skillgraft.evals.tasks import Retention, read_retention
from skillgraft.models.answering import load
from skillgraft.models.loading import context_length
from skillgraft.models.prompts import Prompt, as_prompt, check_prompts_fit, prompt_ids
from skillgraft.settings.evaluation import EvalRow, EvaluationSettings
from skillgraft.support.progress import NO_METRICS, Progress
from skillgraft.support.resume import load_or_compute


@dataclass(frozen=True)
class EvaluationTask:
    """What every row of a stage is asked: the questions, all documents, and how answers are made."""

    settings: EvaluationSettings
    questions: Sequence[Task]
    documents: Sequence[Document]
    seed: int
    domain: Domain = KNOWLEDGE


def evaluate_rows(
    task: EvaluationTask, inputs: Mapping[str, Path], work: Path, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Return the raw result of every row by its name, models first; `inputs` maps references to directories."""
    settings, raws = task.settings, {}
    retention = read_retention(settings.retention)
    items = sum(map(len, retention.tasks.values())) if retention else 0
    of = len(task.questions) * (len(settings.models) + len(settings.rows)) + items * len(settings.models)
    done = 0

    def moved(more: int) -> None:
        progress(done + more, of)

    for number, model in enumerate(settings.models):
        raws[model] = _closed_book(task, inputs[model], retention, work / f"row-{number}", moved)
        done += len(task.questions) + items
    for number, row in enumerate(settings.rows, start=len(settings.models)):
        raws[row.id] = _prompted(task, row, inputs[row.model], work / f"row-{number}", moved)
        done += len(task.questions)
    return raws


def _closed_book(
    task: EvaluationTask, directory: Path, retention: Retention | None, place: Path, progress: Callable[[int], None]
) -> dict[str, Any]:
    loaded = functools.cache(lambda: load(directory))
    raw = kept(place, "answers", lambda: _answered(task, loaded, None, progress))
    if retention is None:
        return raw | {"retention": []}
    before = len(task.questions)
    return raw | kept(
        place,
        "retention",
        lambda: measure(
            *loaded(),
            retention,
            kept=functools.partial(kept, place),
            progress=lambda done: progress(before + done),
        ),
    )


def _prompted(
    task: EvaluationTask, row: EvalRow, directory: Path, place: Path, progress: Callable[[int], None]
) -> dict[str, Any]:
    raw = kept(place, "answers", lambda: _answered(task, lambda: load(directory), row, progress))
    return raw | {"retention": []}


def _answered(
    task: EvaluationTask,
    loaded: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    row: EvalRow | None,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Return a row's answers, scores and cost (loading included), what its prompts took and what retrieval found."""

    def count(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, /) -> None:
        progress(done)

    start = time.monotonic()
    model, tokenizer = loaded()
    prompts, facts = row_prompts(task, row, tokenizer)
    sizes = prompt_sizes(task, row, prompts, tokenizer, context_length(model))
    raw = answer_and_score(
        model,
        tokenizer,
        task.questions,
        max_new_tokens=task.settings.max_new_tokens,
        batch_size=task.settings.batch_size,
        progress=count,
        prompts=prompts,
        domain=task.domain,
    )
    return raw | facts | {"prompt_tokens": sum(sizes) / len(sizes), "seconds": time.monotonic() - start}


def prompt_sizes(
    task: EvaluationTask,
    row: EvalRow | None,
    prompts: Sequence[Prompt],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> list[int]:
    """Return the tokens of each prompt of a row; `DataError` for one that does not fit with its answer."""
    sizes = [len(ids) for ids in prompt_ids(tokenizer, prompts)]
    where, remedy = "questions", "shorten the question"
    if row is not None:
        where, remedy = f"rows: {row.id}", "lower top_k, chunk_tokens or shots, or let bm25 find parts of documents"
    check_prompts_fit(sizes, task.settings.max_new_tokens, context, where, remedy)
    return sizes


def row_prompts(
    task: EvaluationTask, row: EvalRow | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Prompt], dict[str, Any]]:
    """Return each question's prompt in a row (None: closed-book), and `found` by question where text was retrieved."""
    if row is None:
        return [task.domain.prompt(tokenizer, question) for question in task.questions], {}
    if row.shots_from is not None:
        pool = read_examples(row.shots_from, row.shots, task.questions)
        examples = [draw_examples(pool, row.shots, question, task.seed) for question in task.questions]
        pairs = zip(task.questions, examples, strict=True)
        return [as_prompt(tokenizer, q.prompt, examples=drawn) for q, drawn in pairs], {}

    def offsets(text: str) -> Sequence[tuple[int, int]]:
        return tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]

    retrieved = find_chunks(row, task.documents, offsets, task.questions)
    prompts = [
        as_prompt(tokenizer, question.prompt, context=as_context(chunks))
        for question, chunks in zip(task.questions, retrieved, strict=True)
    ]
    return prompts, {"found": recall(retrieved, task.questions)}


def _file(place: Path, name: str) -> Path:
    return place.with_name(f"{place.name}-{name}.json")


def kept(place: Path, name: str, compute: Callable[[], Any]) -> Any:
    """Return what `compute` returns, as JSON; what an earlier run kept under this name is not computed again."""
    return load_or_compute(_file(place, name), compute)
