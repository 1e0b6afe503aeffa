"""Retrieval by BM25 (through bm25s): which chunks of the documents a question's prompt gets. Loads no torch.

    score(q, d) = Σ_w idf(w) · tf / (tf + k₁·(1 − b + b·|d| / mean |d|)),  idf(w) = ln(1 + (N − n_w + ½) / (n_w + ½))

over the words w of the question, with k₁ = 1.5 and b = 0.75: Robertson & Zaragoza (2009), section 3.5, in the form of
Lucene (Kamphuis et al. 2020, table 1). Words are runs of letters and digits, without articles, so that `Vell's` finds
`Vell`; in scripts without spaces each character is one.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from skillgraft.data.chunks import chunks
from skillgraft.data.documents import Document
from skillgraft.data.metrics import containment
from skillgraft.data.tasks import Task
from skillgraft.data.words import words
from skillgraft.errors import RecipeError

Offsets = Callable[[str], Sequence[tuple[int, int]]]
"""The characters [start, end) of each token of a text."""


@dataclass(frozen=True)
class Chunk:
    """A piece of one document; `text` begins with the document's title where it has one."""

    document: str
    text: str


def cut(documents: Sequence[Document], offsets: Offsets, size: int, overlap: int) -> list[Chunk]:
    """Return the documents' chunks of at most `size` tokens, which share `overlap`, each under its document's title."""
    return [
        Chunk(document.id, Document(document.id, document.title, piece).rendered())
        for document in documents
        for piece in chunks(document.text, offsets(document.text), [size], overlap)
    ]


def searched(text: str) -> list[str]:
    """Return the words of a text that BM25 counts."""
    return words("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text))


def require_bm25s() -> None:
    """Raise `RecipeError` where bm25s is not installed."""
    if importlib.util.find_spec("bm25s") is None:
        raise RecipeError("context: bm25 needs the package bm25s: pip install 'skillgraft[retrieval]'")


def rank(found_in: Sequence[Chunk], questions: Sequence[Task], top_k: int) -> list[list[Chunk]]:
    """Return for each question the `top_k` chunks of highest score, the best first, of equal ones the earlier.

    A chunk that shares no word with the question is not found at all, so there may be fewer.
    """
    require_bm25s()
    import bm25s
    import numpy as np

    index = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
    index.index([searched(chunk.text) for chunk in found_in], show_progress=False)
    ranked = []
    for question in questions:
        asked = searched(question.prompt)
        scores = index.get_scores(asked) if asked else np.zeros(len(found_in))
        best = np.argsort(-scores, kind="stable")[:top_k]
        ranked.append([found_in[i] for i in best if scores[i] > 0])
    return ranked


def recall(found: Sequence[Sequence[Chunk]], questions: Sequence[Task]) -> dict[str, list[float]]:
    """Return per question whether a chunk of its own document was found, and whether a gold answer stands in them."""
    return {
        "recall": [
            float(any(chunk.document == question.cluster for chunk in chunks_))
            for chunks_, question in zip(found, questions, strict=True)
        ],
        "answer_in_context": [
            max((containment(chunk.text, question.answers) for chunk in chunks_), default=0.0)
            for chunks_, question in zip(found, questions, strict=True)
        ],
    }
