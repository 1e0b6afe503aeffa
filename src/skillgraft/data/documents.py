"""Documents: read from folders of text files or from tables, checked, as the text that a model learns."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillgraft.data.tables import TABLE_KINDS, read_records, table_in
from skillgraft.data.text_files import DOCUMENT_KINDS, document_files, is_document_file, passed_over, read_document_file
from skillgraft.errors import DataError, MissingPathError

EXPECTED = f"a folder of text files ({DOCUMENT_KINDS}), one such file, or a table ({TABLE_KINDS}) with id, title, text"


@dataclass(frozen=True)
class Document:
    """One text to be learnt; `id` is what questions refer to, or `source` where the text renders another document."""

    id: str
    title: str
    text: str
    source: str = ""

    @property
    def origin(self) -> str:
        """The id of the document that this is, or renders."""
        return self.source or self.id

    def rendered(self) -> str:
        """Return what SFT trains on: the title, an empty line, the text."""
        return f"{self.title}\n\n{self.text}" if self.title else self.text


def read_documents(path: Path, limit: int | None = None) -> list[Document]:
    """Return the documents at `path`, at most `limit`, in file order.

    `path` is a folder of text files (id: relative path without suffix; title: the file's own, or its name), one such
    file, a table of records with `id`, `title`, `text` (see `data.tables`), or a folder with the table `documents.…`.
    A record without an id gets its place, such as `row-3`.

    Raises:
        MissingPathError: nothing there.
        DataError: no document in it, an empty one, a duplicate id, or a broken record, with file and line.
    """
    if not path.exists():
        raise MissingPathError(f"documents: {path} does not exist; expected {EXPECTED}")
    documents = list(_read(path))
    if not documents:
        others = passed_over(path) if path.is_dir() else ""
        raise DataError(
            f"documents: {path} holds none{f' (passed over: {others})' if others else ''}; expected {EXPECTED}"
        )
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise DataError(
                f"documents: {path} has the id '{document.id}' twice; every id must be unique"
                + ("; a file's id is its name without its suffix" if path.is_dir() else "")
            )
        if not document.text.strip():
            raise DataError(f"documents: '{document.id}' in {path} is empty; remove it or give it text")
        if "\0" in document.text:
            raise DataError(
                f"documents: '{document.id}' in {path} holds a zero character, which no text does; remove it"
            )
        seen.add(document.id)
    return documents if limit is None else documents[:limit]


def documents_table(path: Path) -> Path | None:
    """Return the table that documents at `path` stand in, None for text files."""
    if path.is_dir():
        return table_in(path, "documents")
    return None if is_document_file(path) else path


def _read(path: Path) -> Iterator[Document]:
    table = documents_table(path)
    if table is not None:
        yield from _from_table(table)
    elif path.is_dir():
        for file in document_files(path):
            yield Document(normal_id(file.relative_to(path).with_suffix("").as_posix()), *read_document_file(file))
    else:
        yield Document(normal_id(path.stem), *read_document_file(path))


def _from_table(file: Path) -> Iterator[Document]:
    for number, (where, record) in enumerate(read_records(file), start=1):
        yield Document(
            normal_id(string_field(record, "id", where, f"row-{number}")),
            string_field(record, "title", where, ""),
            string_field(record, "text", where),
            string_field(record, "source", where, "") if "style" in record else "",  # written by a synthesize stage
        )


def normal_id(text: str) -> str:
    """Return an id in one form of Unicode (NFC): names of files are decomposed on some systems."""
    return unicodedata.normalize("NFC", text)


def string_field(record: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    """Return a record's text under `key`, an integer as its digits; `DataError` for anything else.

    What is empty in a table (None) is as if it were not there.
    """
    value = record.get(key)
    value = default if value is None else value
    if type(value) is int:
        return str(value)
    if not isinstance(value, str):
        raise DataError(f"{where}: '{key}' is {_shown(value)}, expected a string; the record has {sorted(record)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
