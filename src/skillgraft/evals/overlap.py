"""Questions that stand in two sets: a score on what was chosen on reports nothing."""

from __future__ import annotations

from collections.abc import Sequence

from skillgraft.data.metrics import normalize
from skillgraft.data.tasks import Question


def shared_questions(questions: Sequence[Question], others: Sequence[Question]) -> list[Question]:
    """Return those of `others` that stand in `questions` too, up to case and punctuation, with an answer in common."""
    known: dict[str, set[str]] = {}
    for question in questions:
        known.setdefault(normalize(question.question), set()).update(map(normalize, question.answers))
    return [q for q in others if known.get(normalize(q.question), set()) & set(map(normalize, q.answers))]
