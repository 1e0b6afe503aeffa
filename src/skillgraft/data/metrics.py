"""Metrics that need no judge: exact match, token F1 and containment of a gold answer, as pure functions of strings.

Normalisation follows the SQuAD v1.1 evaluation (Rajpurkar et al., arXiv 1606.05250, section 6.1): lower case, no
punctuation, no articles, single spaces. Departure: beside ASCII punctuation and symbols, any Unicode punctuation
is dropped, so that curly quotes and en dashes do not count against an answer.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalize(text: str) -> str:
    """Return `text` in lower case without punctuation and articles, words separated by single spaces."""
    letters = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return " ".join(_ARTICLES.sub(" ", letters).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if the normalised prediction equals a normalised gold answer, else 0.0."""
    return float(any(normalize(prediction) == normalize(answer) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Return the best token F1 over the gold answers, in [0, 1]: 2·overlap / (predicted words + gold words)."""
    return max(_f1_single(normalize(prediction).split(), normalize(answer).split()) for answer in answers)


def _f1_single(predicted: list[str], gold: list[str]) -> float:
    if not predicted or not gold:
        return float(predicted == gold)
    overlap = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * overlap / (len(predicted) + len(gold))


def containment(prediction: str, answers: Sequence[str]) -> float:
    """Return 1.0 if a gold answer's normalised words occur, in order and adjacent, in the prediction, else 0.0."""
    words = f" {normalize(prediction)} "
    return float(any(gold and f" {gold} " in words for gold in map(normalize, answers)))


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
