"""Documents grouped by what they are renderings of: a passage is learnt alone from all of its renderings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from skillgraft.data.documents import Document


@dataclass(frozen=True)
class Passage:
    """One passage; `document` has the id that questions name, `renderings` are what is trained on."""

    document: Document
    renderings: tuple[Document, ...]


def passages(documents: Sequence[Document], limit: int | None = None) -> list[Passage]:
    """Return the first `limit` passages, each with its documents, in the order of their first ones."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.source or document.id, []).append(document)
    every = [Passage(replace(group[0], id=name), tuple(group)) for name, group in groups.items()]
    return every if limit is None else every[:limit]
