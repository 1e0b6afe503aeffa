"""In-context rows of an evaluation: documents (open book) or worked examples in the prompt. Loads no torch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from skillgraft.data.documents import Document
from skillgraft.data.retrieval import Chunk, Offsets, cut, rank
from skillgraft.data.tasks import Question, Task, read_questions
from skillgraft.data.words import comparable
from skillgraft.errors import DataError
from skillgraft.settings.evaluation import EvalRow


def find_chunks(
    row: EvalRow, documents: Sequence[Document], offsets: Offsets, questions: Sequence[Task]
) -> list[list[Chunk]]:
    """Return the chunks that each question's prompt gets: its own document whole, or what BM25 finds.

    Raises:
        DataError: with `context: gold`, a question on a document that is not there.
    """
    if row.context == "bm25":
        return rank(cut(documents, offsets, row.chunk_tokens, row.overlap_tokens), questions, row.top_k)
    by_id = {document.id: Chunk(document.id, document.rendered()) for document in documents}
    for question in questions:
        if question.cluster not in by_id:
            raise DataError(f"context: gold: there is no document '{question.cluster}', which is asked about")
    return [[by_id[question.cluster]] for question in questions]


def as_context(found: Sequence[Chunk]) -> str:
    """Return the text of the found chunks as it stands in the prompt."""
    return "\n\n".join(chunk.text for chunk in found)


def read_examples(path: Path, shots: int, evaluated: Sequence[Task]) -> list[Question]:
    """Return the questions that worked examples are drawn from.

    Raises:
        DataError: fewer than `shots`, or one that is evaluated too: up to case and
            punctuation the same question, on the same document or with the same answer.
    """
    examples = read_questions(path)
    if len(examples) < shots:
        raise DataError(f"shots_from: {path} has {len(examples)} questions, but shots: {shots} are asked for")
    evaluated_ids = {(question.cluster, comparable(question.prompt)) for question in evaluated}
    plain = {(comparable(q.prompt), comparable(answer)) for q in evaluated for answer in q.answers}
    for example in examples:
        text = comparable(example.prompt)
        if (example.cluster, text) in evaluated_ids or any((text, comparable(a)) in plain for a in example.answers):
            raise DataError(
                f"shots_from: {path} holds a question that is evaluated: '{example.prompt}' (document "
                f"'{example.cluster}'); draw examples from other questions"
            )
    return examples


def draw_examples(examples: Sequence[Task], shots: int, question: Task, seed: int) -> list[tuple[str, str]]:
    """Return `shots` different examples with their first gold answer, drawn by the seed and the question alone."""
    own = random.Random(f"{seed}\0{question.cluster}\0{question.prompt}")
    return [(example.prompt, example.answers[0]) for example in own.sample(list(examples), shots)]
