"""Metrics that need no judge: exact match, token F1 and containment of a gold answer, as pure functions of strings.

Words and their normalization are those of `data.words`: the SQuAD v1.1 evaluation's (arXiv 1606.05250, section 6.1) for
English, characters in scripts without spaces. Two departures from its script, since metrics are rewards too: an empty
answer is never right; and where normalization leaves nothing of a gold answer ("A", "+", "The The"), articles, then
signs too, are kept on both sides, with their case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from skillgraft.data.words import units, what_counts


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if the normalized prediction equals a normalized gold answer, else 0.0."""
    return max((float(predicted == gold) for predicted, gold in _compared(prediction, answers)), default=0.0)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the best token F1 over the gold answers, in [0, 1]: 2·overlap / (predicted words + gold words)."""
    return max((_f1_single(predicted, gold) for predicted, gold in _compared(prediction, answers)), default=0.0)


def containment(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if a gold answer's normalized words occur, in order and adjacent, in the prediction, else 0.0."""
    return max((float(_holds(predicted, gold)) for predicted, gold in _compared(prediction, answers)), default=0.0)


def _compared(prediction: str, answers: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Return the words of the prediction and of each gold answer, but for answers of which nothing is left."""
    pairs = []
    for answer in answers:
        kept = what_counts(answer)
        pairs.append((units(prediction, kept), units(answer, kept)))
    return [(predicted, gold) for predicted, gold in pairs if gold]


def _f1_single(predicted: list[str], gold: list[str]) -> float:
    overlap = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * overlap / (len(predicted) + len(gold))


def _holds(predicted: list[str], gold: list[str]) -> bool:
    return any(predicted[start : start + len(gold)] == gold for start in range(len(predicted) - len(gold) + 1))


@dataclass(frozen=True)
class Metric:
    """A score of one answer: what tables call it, how it is computed, and which direction is better."""

    label: str
    compute: Callable[[str, Sequence[str]], float]
    direction: Literal["higher", "lower"] = "higher"

    def __call__(self, prediction: str, answers: Sequence[str]) -> float:
        """Return the score of a prediction against the right answers."""
        return self.compute(prediction, answers)


METRICS: dict[str, Metric] = {
    "f1": Metric("F1", f1),
    "containment": Metric("containment", containment),
    "exact_match": Metric("exact match", exact_match),
}
"""Metrics by name; the report shows all, the first two in its headlines. A new one is a function and a line here."""
