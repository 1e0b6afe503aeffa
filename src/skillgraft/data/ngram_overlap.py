"""N-gram overlap: training text that gives away evaluation questions, by normalized word sequences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from skillgraft.data.synthesis.filters import ngrams
from skillgraft.data.tasks import Question
from skillgraft.data.words import words

SEQUENCE = 4
"""Words of the sequences that are counted."""


class Leakage:
    """How much of each held-out question stands in the texts seen so far.

    The overlap of a question and a text is the share of the question's 4-word sequences that occur in the text, in
    [0, 1]; a question of up to 4 words is one sequence. A text that holds the whole question has overlap 1. A text
    whose overlap reaches `limit` gives the question away.
    """

    def __init__(self, questions: Sequence[Question], limit: float) -> None:
        self.questions, self.limit = questions, limit
        self._sequences = [set(ngrams(words(question.question), SEQUENCE)) for question in questions]
        self._asked_by: dict[tuple[str, ...], list[int]] = {}
        for number, sequences in enumerate(self._sequences):
            for sequence in sequences:
                self._asked_by.setdefault(sequence, []).append(number)
        self._lengths = {len(sequence) for sequence in self._asked_by}
        self._largest = [(0.0, "")] * len(questions)
        self._leaked_by: list[list[str]] = [[] for _ in questions]

    def overlaps(self, text: str) -> dict[int, float]:
        """Return, by the question's number, every overlap above 0."""
        spoken = words(text)
        held = {sequence for n in self._lengths for sequence in ngrams(spoken, n)}
        counts: dict[int, int] = {}
        for sequence in held & self._asked_by.keys():
            for number in self._asked_by[sequence]:
                counts[number] = counts.get(number, 0) + 1
        return {number: count / len(self._sequences[number]) for number, count in sorted(counts.items())}

    def gives_away(self, name: str, text: str) -> list[int]:
        """Return the numbers of the questions that `text` gives away, and remember it for the report."""
        overlaps = self.overlaps(text)
        given_away = [number for number, overlap in overlaps.items() if overlap >= self.limit]
        for number, overlap in overlaps.items():
            if overlap > self._largest[number][0]:
                self._largest[number] = overlap, name
        for number in given_away:
            self._leaked_by[number].append(name)
        return given_away

    def report(self, removed: Iterable[str]) -> list[dict[str, Any]]:
        """Return one record a question: its largest overlap and where, what gives it away, and what of that stays."""
        gone = set(removed)
        return [
            {
                "document": question.document,
                "question": question.question,
                "overlap": round(overlap, 4),
                "where": where,
                "leaked_by": names,
                "stays": [name for name in names if name not in gone],
            }
            for question, (overlap, where), names in zip(self.questions, self._largest, self._leaked_by, strict=True)
        ]
