"""Filters of renderings: pure functions of strings that say what is wrong with one, or how much it shares with another.

Words are those of `data.words`: lower case, no punctuation, no articles; scripts without spaces count by character.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from skillgraft.data.words import words

_REFUSAL = re.compile(
    r"\W*(i'?m (very )?sorry\b|i am (very )?sorry\b|sorry, (but )?i\b|i (can'?t|cannot|can not|"
    r"am unable to|'?m unable to|am not able to) "
    r"(help|assist|answer|provide|fulfil|comply|do|access|see|read|create|generate)|"
    r"(as|i'?m|i am) an? (ai|artificial intelligence|language model|large language model)\b|"
    r"(please provide|could you( please)? provide|you (have not|haven'?t|did not|didn'?t) provided?) (me )?(with )?"
    r"(the|a|any|your) (passage|text|document))",
    re.IGNORECASE,
)
SHINGLE = 3
"""Words of a shingle, of which near duplicates share most."""
REPEATED = 4
"""Words of the sequences whose repetition makes a rendering degenerate."""


def ngrams(items: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return the sequences of `n` adjacent items in order; of fewer items, all of them as one; of none, none."""
    if len(items) <= n:
        return [tuple(items)] if items else []
    return [tuple(items[i : i + n]) for i in range(len(items) - n + 1)]


def is_refusal(text: str) -> bool:
    """Return whether `text` begins as a refusal, or speaks of the passage as not given."""
    return _REFUSAL.match(text.replace("’", "'")) is not None


def is_nonsense(text: str) -> bool:
    """Return whether `text` is no text: characters are broken, or under half of the visible are letters or digits."""
    visible = [c for c in text if not c.isspace()]
    known = sum(unicodedata.category(c)[0] in "LNM" for c in visible)
    broken = "\ufffd" in text or any(unicodedata.category(c) == "Cc" and c not in "\n\t\r" for c in text)
    return broken or 2 * known < len(visible)


def repetition(text: str) -> float:
    """Return the share of 4-word sequences that occurred before in `text`, in [0, 1): 0 where none does."""
    sequences = ngrams(words(text), REPEATED)
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def support(answer: str, passage: str) -> float:
    """Return the share of the answer's words that occur in the passage, in [0, 1]; 0 for an answer without words."""
    wanted = words(answer)
    known = set(words(passage))
    return sum(word in known for word in wanted) / len(wanted) if wanted else 0.0


def share(text: str, of: str) -> float:
    """Return the share of the 4-word sequences of `text` that occur in `of`, in [0, 1]; 0 where there are none."""
    sequences = ngrams(words(text), REPEATED)
    known = set(ngrams(words(of), REPEATED))
    return sum(sequence in known for sequence in sequences) / len(sequences) if sequences else 0.0


def jaccard(a: str, b: str) -> float:
    """Return |A ∩ B| / |A ∪ B| of the sets of 3-word shingles; 0 where one is empty."""
    first, second = (set(ngrams(words(text), SHINGLE)) for text in (a, b))
    return len(first & second) / len(first | second) if first and second else 0.0


class Duplicates:
    """The texts kept so far, by shingle: finds for a new one the closest of all of them."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sizes: list[int] = []
        self._holders: dict[tuple[str, ...], list[int]] = {}

    def closest(self, text: str) -> tuple[str, float]:
        """Return the name of the kept text with the largest `jaccard` to `text`, the earliest of equals, and that."""
        shingles = set(ngrams(words(text), SHINGLE))
        shared = Counter(number for shingle in shingles for number in self._holders.get(shingle, ()))
        scored = {number: count / (len(shingles) + self._sizes[number] - count) for number, count in shared.items()}
        if not scored:
            return "", 0.0
        best = min(scored, key=lambda number: (-scored[number], number))
        return self._names[best], scored[best]

    def add(self, name: str, text: str) -> None:
        """Keep `text` under `name`."""
        shingles = set(ngrams(words(text), SHINGLE))
        for shingle in shingles:
            self._holders.setdefault(shingle, []).append(len(self._names))
        self._names.append(name)
        self._sizes.append(len(shingles))
