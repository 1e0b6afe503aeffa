"""Renderings that exist already: JSONL by document, or the files of the SEAL repository."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skillgraft.data.documents import Document
from skillgraft.data.tables import read_records
from skillgraft.data.text_files import read_text
from skillgraft.errors import DataError, MissingPathError


def read_given(path: Path, documents: Sequence[Document], samples: int | None = None) -> list[tuple[str, str]]:
    """Return (document id, text) of every rendering in `path` that is of one of `documents`, in the file's order.

    With `samples`, limited to the first N of each document.

    `path` is JSONL of `{"document", "text"}`, or a `.json` file as SEAL's: a list of records with `context` (the
    document's text) and `completions` (texts, or a string that holds a JSON or Python list of them). Empty texts of
    SEAL's files are left out: there they stand for no rendering.

    Raises:
        MissingPathError: no such file.
        DataError: a record of another shape, or none about any of the documents.
    """
    if not path.is_file():
        raise MissingPathError(f"given: {path} does not exist; expected JSONL with document, text, or SEAL's JSON")
    renderings = _of_seal(path, documents) if path.suffix == ".json" else _of_jsonl(path)
    known = {document.id for document in documents}
    taken: Counter[str] = Counter()
    chosen = []
    for document, text in renderings:
        if document in known and (samples is None or taken[document] < samples):
            taken[document] += 1
            chosen.append((document, text))
    if not chosen:
        raise DataError(f"given: {path} holds no rendering of any of the {len(documents)} documents")
    return chosen


def _of_jsonl(path: Path) -> list[tuple[str, str]]:
    renderings = []
    for where, record in read_records(path):
        document, text = record.get("document"), record.get("text")
        if not isinstance(document, str) or not isinstance(text, str):
            raise DataError(f"{where}: expected the strings 'document' and 'text'; the line has {sorted(record)}")
        renderings.append((document, text))
    return renderings


def _of_seal(path: Path, documents: Sequence[Document]) -> list[tuple[str, str]]:
    try:
        records = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"given: {path} is not JSON ({error})") from error
    if not isinstance(records, list):
        raise DataError(f"given: {path} holds a {type(records).__name__}, expected a list of records")
    by_text = {" ".join(document.text.split()): document.id for document in documents}
    renderings = []
    for number, record in enumerate(records):
        where = f"given: {path}, record {number}"
        if not isinstance(record, dict) or not isinstance(record.get("context"), str):
            raise DataError(f"{where}: expected a mapping with context and completions")
        document = by_text.get(" ".join(record["context"].split()))
        if document is not None:
            renderings += [(document, text) for text in _texts(record.get("completions"), where) if text.strip()]
    return renderings


def _texts(value: Any, where: str) -> list[str]:
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise DataError(f"{where}: 'completions' is a string, but no list of texts") from error
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f"{where}: 'completions' is a {type(value).__name__}, expected a list of texts")
    try:
        "".join(value).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: contains a lone surrogate, which is not text; remove it") from error
    return value
