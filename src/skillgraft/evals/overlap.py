"""Questions that stand in two sets: a score on what was chosen on reports nothing."""

from __future__ import annotations

from collections.abc import Sequence

from skillgraft.data.tasks import Question
from skillgraft.data.words import comparable


def shared_questions(questions: Sequence[Question], others: Sequence[Question]) -> list[Question]:
    """Return those of `others` that stand in `questions` too, up to case and punctuation, with an answer in common."""
    known: dict[str, set[str]] = {}
    for question in questions:
        known.setdefault(comparable(question.question), set()).update(map(comparable, question.answers))
    return [q for q in others if known.get(comparable(q.question), set()) & set(map(comparable, q.answers))]
