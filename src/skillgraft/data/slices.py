"""Cutting documents into disjoint parts of like size, in file order: the slices of iterative refinement."""

from __future__ import annotations

from collections.abc import Sequence

from skillgraft.data.documents import Document
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError, RecipeError
from skillgraft.settings.base import parse_slice


def choose(documents: Sequence[Document], limit: int | None = None, part: str | None = None) -> list[Document]:
    """Return the first `limit` documents, of these the `part` ("1/2"); what comes from one document stays together.

    With n documents, part k of K holds those from n·(k−1)/K to n·k/K, rounded down: the parts are disjoint, together
    they are all, and their sizes differ by one at most. Renderings count by the document that they render.

    Raises:
        DataError: fewer documents than parts.
    """
    chosen = list(documents[:limit])
    if part is None:
        return chosen
    number, parts = parse_slice(part)
    origins = list(dict.fromkeys(document.origin for document in chosen))
    if len(origins) < parts:
        raise DataError(
            f"part {part}: {len(origins)} documents cannot be cut into {parts} parts; give more documents or "
            "fewer parts (the rounds of a refine stage)"
        )
    mine = set(origins[len(origins) * (number - 1) // parts : len(origins) * number // parts])
    return [document for document in chosen if document.origin in mine]


def asked_documents(documents: Sequence[Document], questions: Sequence[Question], rounds: int) -> list[Document]:
    """Return the documents that questions are about; `RecipeError` for fewer of them than rounds."""
    ids = {question.document for question in questions}
    used = [document for document in documents if document.id in ids]
    if len(used) < rounds:
        raise RecipeError(
            f"rounds: {len(used)} documents have questions, fewer than {rounds} rounds; give more, or lower it"
        )
    return used
