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

from skillgraft.data.documents import Document, Question
from skillgraft.data.retrieval import recall
from skillgraft.errors import RecipeError
from skillgraft.evals.answers import answer_and_score, load
from skillgraft.evals.in_context import as_context, draw_examples, find_chunks, read_examples
from skillgraft.evals.perplexity import context_length
from skillgraft.evals.retention import measure
from skillgraft.evals.tasks import Retention, read_retention
from skillgraft.recipe.schema import EvalStage
from skillgraft.settings.evaluation import EvalRow
from skillgraft.support.progress import NO_METRICS, Progress
from skillgraft.support.resume import load_or_compute
from skillgraft.train.prompts import Prompt, as_prompt, encode_prompts


@dataclass(frozen=True)
class Asked:
    """What every row of a stage is asked: the questions, all documents, and how answers are made."""

    stage: EvalStage
    questions: Sequence[Question]
    documents: Sequence[Document]
    seed: int


def evaluate_rows(
    asked: Asked, inputs: Mapping[str, Path], work: Path, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Return the raw result of every row by its name, models first; `inputs` maps references to directories."""
    stage, raws = asked.stage, {}
    retention = read_retention(stage.retention)
    items = sum(map(len, retention.tasks.values())) if retention else 0
    of = len(asked.questions) * (len(stage.models) + len(stage.rows)) + items * len(stage.models)
    done = 0

    def moved(more: int) -> None:
        progress(done + more, of)

    for number, model in enumerate(stage.models):
        raws[model] = _closed_book(asked, inputs[model], retention, work / f"row-{number}", moved)
        done += len(asked.questions) + items
    for number, row in enumerate(stage.rows, start=len(stage.models)):
        raws[row.id] = _prompted(asked, row, inputs[row.model], work / f"row-{number}", moved)
        done += len(asked.questions)
    return raws


def _closed_book(
    asked: Asked, directory: Path, retention: Retention | None, place: Path, progress: Callable[[int], None]
) -> dict[str, Any]:
    loaded = functools.cache(lambda: load(directory))
    raw = kept(place, "answers", lambda: _answered(asked, loaded, None, progress))
    if retention is None:
        return raw | {"retention": []}
    before = len(asked.questions)
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
    asked: Asked, row: EvalRow, directory: Path, place: Path, progress: Callable[[int], None]
) -> dict[str, Any]:
    raw = kept(place, "answers", lambda: _answered(asked, lambda: load(directory), row, progress))
    return raw | {"retention": []}


def _answered(
    asked: Asked,
    loaded: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    row: EvalRow | None,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Return a row's answers, scores and cost (loading included), what its prompts took and what retrieval found."""

    def count(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, /) -> None:
        progress(done)

    start = time.monotonic()
    model, tokenizer = loaded()
    prompts, facts = row_prompts(asked, row, tokenizer)
    sizes = prompt_sizes(asked, row, prompts, tokenizer, context_length(model))
    raw = answer_and_score(
        model,
        tokenizer,
        asked.questions,
        max_new_tokens=asked.stage.max_new_tokens,
        batch_size=asked.stage.batch_size,
        progress=count,
        prompts=prompts,
    )
    return raw | facts | {"prompt_tokens": sum(sizes) / len(sizes), "seconds": time.monotonic() - start}


def prompt_sizes(
    asked: Asked, row: EvalRow | None, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, context: int
) -> list[int]:
    """Return the tokens of each prompt of a row; `RecipeError` for one that does not fit with its answer."""
    sizes = [len(ids) for ids in encode_prompts(tokenizer, prompts, padding=False)["input_ids"]]
    if row is not None and max(sizes) + asked.stage.max_new_tokens > context:
        raise RecipeError(
            f"rows: {row.id}: a prompt of {max(sizes)} tokens and max_new_tokens: {asked.stage.max_new_tokens} do not "
            f"fit into the model's context of {context}; lower top_k, chunk_tokens or shots, or let bm25 "
            "find parts of long documents"
        )
    return sizes


def row_prompts(
    asked: Asked, row: EvalRow | None, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Prompt], dict[str, Any]]:
    """Return each question's prompt in a row (None: closed-book), and `found` by question where text was retrieved."""
    if row is None:
        return [as_prompt(tokenizer, question.question) for question in asked.questions], {}
    if row.shots_from is not None:
        pool = read_examples(row.shots_from, row.shots, asked.questions)
        examples = [draw_examples(pool, row.shots, question, asked.seed) for question in asked.questions]
        pairs = zip(asked.questions, examples, strict=True)
        return [as_prompt(tokenizer, q.question, examples=drawn) for q, drawn in pairs], {}

    def offsets(text: str) -> Sequence[tuple[int, int]]:
        return tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]

    found = find_chunks(row, asked.documents, offsets, asked.questions)
    prompts = [
        as_prompt(tokenizer, question.question, context=as_context(chunks))
        for question, chunks in zip(asked.questions, found, strict=True)
    ]
    return prompts, {"found": recall(found, asked.questions)}


def _file(place: Path, name: str) -> Path:
    return place.with_name(f"{place.name}-{name}.json")


def kept(place: Path, name: str, compute: Callable[[], Any]) -> Any:
    """Return what `compute` returns, as JSON; what an earlier run kept under this name is not computed again."""
    return load_or_compute(_file(place, name), compute)
