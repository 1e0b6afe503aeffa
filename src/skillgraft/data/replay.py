"""General text for replay: files of text, or JSONL. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from skillgraft.data.documents import read_records, read_text
from skillgraft.errors import DataError, MissingPathError

SUFFIXES = (".md", ".txt")


def read_replay(path: Path) -> list[str]:
    """Return the texts at `path`: of a folder's .md and .txt files by name, of one such file, or of a JSONL's lines.

    Raises:
        MissingPathError: nothing there.
        DataError: another kind of file, a line without text, no text at all, a binary file or broken UTF-8.
    """
    if not path.exists():
        raise MissingPathError(
            f"replay: {path} does not exist; expected a folder of .md or .txt files, one such file, or JSONL with text"
        )
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        texts = [read_text(file) for file in files]
    elif path.suffix.lower() in SUFFIXES:
        texts = [read_text(path)]
    elif path.suffix.lower() == ".jsonl":
        texts = [_text(record, where) for where, record in read_records(path)]
    else:
        raise DataError(f"replay: {path} is a {path.suffix or 'file without suffix'}, expected .md, .txt or .jsonl")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError(f"replay: {path} holds no text; expected .md or .txt files, or JSONL lines with text")
    return texts


def _text(record: dict[str, object], where: str) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        raise DataError(f"{where}: 'text' is {text!r}, expected a string; the line has {sorted(record)}")
    return text
