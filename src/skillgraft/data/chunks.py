"""Cutting documents into chunks of tokens that overlap. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence


def windows(tokens: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Return [start, end) of each window of at most `size` tokens; neighbours share `overlap`, the last ends the text.

    At least one window, also of no tokens; `overlap` must be below `size`.
    """
    step = size - overlap
    starts = range(0, max(tokens - overlap, 1), step)
    return [(start, min(start + size, tokens)) for start in starts]


def chunks(text: str, offsets: Sequence[tuple[int, int]], sizes: Sequence[int], overlap: int) -> list[str]:
    """Return the chunks of `text` for every size, a chunk that two sizes give alike once.

    `offsets` are the characters [start, end) of each token. A document that fits into a chunk is one whole chunk.
    """
    pieces: dict[str, None] = {}
    for size in sizes:
        if len(offsets) <= size:
            pieces[text] = None
            continue
        for start, end in windows(len(offsets), size, overlap):
            piece = text[offsets[start][0] : offsets[end - 1][1]].strip()
            if piece:
                pieces[piece] = None
    return list(pieces)
