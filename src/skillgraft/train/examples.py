"""Training examples: rows of token ids, and labels that say which of them carry loss (-100: not learnt).

Documents: every token of title and text, as in continued pre-training (PaST, arXiv 2601.11258, section 3), or of the
text alone; longer ones in chunks that carry their title. Questions: the prompt is that of RL and evaluation, only the
answer carries loss. Replay: general text as it is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypedDict

from transformers import PreTrainedTokenizerBase

from skillgraft.data.chunks import windows
from skillgraft.data.documents import Document
from skillgraft.data.tasks import Question
from skillgraft.errors import DataError, TrainingError
from skillgraft.models.prompts import answer_ids, as_prompt, prompt_ids, text_ids
from skillgraft.settings.text import WHOLE, TextSettings

UNLEARNT = -100
"""The label of a token without loss, as in Transformers."""

REPLAY_TOKENS = 1024
"""Longest row of replayed text where the trainer sets no limit."""

_CHARACTERS_PER_TOKEN = 4  # of English; other scripts give shorter pieces of the same text


class Row(TypedDict):
    """One sequence: token ids and labels, equally long."""

    input_ids: list[int]
    labels: list[int]


def document_rows(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    max_length: int | None,
    text: TextSettings = WHOLE,
) -> list[Row]:
    """Return the rows of every document, in order, each of at most `max_length` tokens and ended by the end token.

    Raises:
        TrainingError: a title that leaves no room for text, or none for more than the overlap.
    """
    longest = min((n for n in (text.chunk_tokens, max_length) if n is not None), default=None)
    return [row for document in documents for row in _rows_of(tokenizer, document, longest, text)]


def _rows_of(
    tokenizer: PreTrainedTokenizerBase, document: Document, longest: int | None, settings: TextSettings
) -> list[Row]:
    title, text = _tokens(tokenizer, document)
    room = len(text) if longest is None else longest - len(title) - 1
    parts = [(0, len(text))]
    if len(text) > room:
        if room <= settings.overlap_tokens:
            raise TrainingError(
                f"sft: the title of '{document.id}' alone fills {len(title)} of {longest} tokens, which leaves nothing "
                f"beside an overlap of {settings.overlap_tokens}; raise max_length or chunk_tokens"
            )
        parts = windows(len(text), room, settings.overlap_tokens)
    header = [UNLEARNT] * len(title) if settings.mask_title else title
    rows: list[Row] = []
    for start, end in parts:
        ended = [*text[start:end], tokenizer.eos_token_id]
        rows.append({"input_ids": title + ended, "labels": header + ended})
    return rows


def _tokens(tokenizer: PreTrainedTokenizerBase, document: Document) -> tuple[list[int], list[int]]:
    """Return the ids of the title with the empty line after it, and those of the text; together the whole document."""
    whole = document.rendered()
    encoded = tokenizer(whole, return_offsets_mapping=True)
    ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
    if ids and ids[-1] == tokenizer.eos_token_id:  # a tokenizer that ends texts itself
        ids, ends = ids[:-1], ends[:-1]
    header = len(whole) - len(document.text)
    count = next((i for i, end in enumerate(ends) if end > header), len(ids))
    return ids[:count], ids[count:]


def question_rows(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    max_length: int | None,
    shuffle: bool = False,
    seed: int = 0,
) -> list[Row]:
    """Return one row a question: its prompt, as evaluation asks it, then the first gold answer, which alone has loss.

    With `shuffle` each question gets another one's answer, so that only the form of an answer can be learnt.

    Raises:
        TrainingError: a question whose answer would not fit into `max_length`.
    """
    answers = [question.answers[0] for question in questions]
    if shuffle:
        answers = derange(answers, seed)
    rows: list[Row] = []
    for question, answer in zip(questions, answers, strict=True):
        asked = as_prompt(tokenizer, question.question)
        (prompt,), completion = prompt_ids(tokenizer, [asked]), answer_ids(tokenizer, asked, answer)
        if max_length is not None and len(prompt) + len(completion) > max_length:
            raise TrainingError(
                f"sft: the question '{question.question[:60]}' on '{question.document}' takes {len(prompt)} tokens and "
                f"its answer {len(completion)}, more than max_length = {max_length}: the answer would be cut off; "
                "raise trainer.max_length or shorten the question"
            )
        rows.append({"input_ids": prompt + completion, "labels": [UNLEARNT] * len(prompt) + completion})
    return rows


def derange(items: Sequence[str], seed: int) -> list[str]:
    """Return `items` rotated along a random order, so that none keeps its place (of two or more)."""
    order = list(range(len(items)))
    random.Random(seed).shuffle(order)
    moved = list(items)
    for here, there in zip(order, order[1:] + order[:1], strict=True):
        moved[here] = items[there]
    return moved


def replay_rows(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: int, max_length: int | None, seed: int
) -> list[Row]:
    """Return rows of general text of `tokens` tokens in all, drawn without replacement, in an order that is the seed's.

    Texts are cut into pieces, at white space where there is some, of which each gives one row of at most `max_length`
    tokens. The last row is cut so that the sum is `tokens`, or one less where a row of a single token would be left.

    Raises:
        DataError: less text than that.
    """
    longest = REPLAY_TOKENS if max_length is None else max_length
    pieces = [(text, start, end) for text in texts for start, end in _pieces(text, longest * _CHARACTERS_PER_TOKEN)]
    random.Random(seed).shuffle(pieces)
    rows: list[Row] = []
    left = tokens
    for text, start, end in pieces:
        if left < 2:  # one token predicts nothing
            return rows
        ids = text_ids(tokenizer, text[start:end].strip())[: longest - 1]
        ids = [*ids, tokenizer.eos_token_id][:left]
        if len(ids) > 1:
            rows.append({"input_ids": ids, "labels": list(ids)})
            left -= len(ids)
    if left < 2:
        return rows
    raise DataError(
        f"replay: the text gives {tokens - left} tokens and {tokens} are asked for; lower replay.ratio or give more "
        "text"
    )


def _pieces(text: str, size: int) -> list[tuple[int, int]]:
    """Return [start, end) of consecutive pieces of at most `size` characters, ended at white space where there is."""
    pieces, start = [], 0
    while start < len(text):
        end = min(start + size, len(text))
        if end < len(text):
            end = max((text.rfind(mark, start + size // 2, end) + 1 for mark in " \n"), default=0) or end
        if text[start:end].strip():
            pieces.append((start, end))
        start = end
    return pieces


def learnt_tokens(rows: Sequence[Row]) -> int:
    """Return how many tokens carry loss: the first of a row, which nothing predicts, is counted as TRL counts it."""
    return sum(label != UNLEARNT for row in rows for label in row["labels"])
