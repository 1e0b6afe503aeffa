"""Cutting documents into disjoint parts of like size, in file order: the slices of iterative refinement."""

from __future__ import annotations

import re
from collections.abc import Sequence

from skillgraft.data.documents import Document
from skillgraft.errors import DataError

_PART = re.compile(r"([1-9][0-9]{0,5})/([1-9][0-9]{0,5})")


def parse_part(part: str) -> tuple[int, int]:
    """Return (1, 2) for "1/2", the first of two parts; `ValueError` for what names no part."""
    found = _PART.fullmatch(part)
    if found is None or int(found[1]) > int(found[2]):
        raise ValueError("must name a part such as 1/2, the first of two")
    return int(found[1]), int(found[2])


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
    number, parts = parse_part(part)
    origins = list(dict.fromkeys(document.origin for document in chosen))
    if len(origins) < parts:
        raise DataError(
            f"part {part}: {len(origins)} documents cannot be cut into {parts} parts; give more documents or "
            "fewer parts (the rounds of a refine stage)"
        )
    mine = set(origins[len(origins) * (number - 1) // parts : len(origins) * number // parts])
    return [document for document in chosen if document.origin in mine]
