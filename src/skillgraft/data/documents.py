"""Documents: read from folders of .md and .txt or from JSONL, checked, as the text that a model learns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillgraft.errors import DataError, MissingPathError


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

    `path` is a folder of `.md` / `.txt` files (id: relative path without suffix; title: a leading `# ` heading or the
    file's name), a folder with a `documents.jsonl`, or a JSONL file of `{"id", "title", "text"}`.

    Raises:
        MissingPathError: nothing there.
        DataError: no document in it, an empty one, a duplicate id, or a broken line, with file and line.
    """
    if not path.exists():
        raise MissingPathError(
            f"documents: {path} does not exist; expected a folder of .md or .txt files, or JSONL with id, title, text"
        )
    if path.is_dir() and (path / "documents.jsonl").is_file():
        path = path / "documents.jsonl"
    documents = list(_documents_in_folder(path) if path.is_dir() else _documents_in_jsonl(path))
    if not documents:
        raise DataError(
            f"documents: {path} holds none; expected .md or .txt files, or JSONL lines with id, title, text"
        )
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise DataError(
                f"documents: {path} has the id '{document.id}' twice; every id must be unique"
                + ("; a file's id is its name without .md or .txt" if path.is_dir() else "")
            )
        if not document.text.strip():
            raise DataError(f"documents: '{document.id}' in {path} is empty; remove it or give it text")
        if "\0" in document.text:
            raise DataError(
                f"documents: '{document.id}' in {path} holds a zero character, which no text does; remove it"
            )
        seen.add(document.id)
    return documents if limit is None else documents[:limit]


def _documents_in_folder(folder: Path) -> Iterator[Document]:
    for file in sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".md", ".txt"} and p.is_file()):
        text = read_text(file).strip()
        first, _, rest = text.partition("\n")
        heading = first.startswith("# ")
        title = first[2:].strip() if heading else file.stem.replace("_", " ").replace("-", " ")
        name = file.relative_to(folder).with_suffix("").as_posix()
        yield Document(name, title, rest.strip() if heading else text)


def _documents_in_jsonl(file: Path) -> Iterator[Document]:
    for where, record in read_records(file):
        yield Document(
            string_field(record, "id", where),
            string_field(record, "title", where, ""),
            string_field(record, "text", where),
            string_field(record, "source", where, "") if "style" in record else "",  # written by a synthesize stage
        )


def read_records(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (location, object) per line of a JSONL file; `DataError` for a line that is not an object."""
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: contains a lone surrogate, which is not text; remove it") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: not JSON ({error}); expected one JSON object a line") from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: got a {type(record).__name__}, expected one JSON object a line")
        yield where, record


def string_field(record: dict[str, Any], key: str, where: str, default: str | None = None) -> str:
    """Return a record's text under `key`; `DataError` for anything else, with where the record stands."""
    value = record.get(key, default)
    if not isinstance(value, str):
        raise DataError(f"{where}: '{key}' is {value!r}, expected a string; the line has {sorted(record)}")
    return value


def read_text(file: Path) -> str:
    """Return a UTF-8 file's text; `DataError` for one that cannot be read, is not UTF-8, or is binary."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: not UTF-8 text ({error.reason} at byte {error.start}); convert it or remove it"
        ) from error
    if "\0" in text:
        at = text.index("\0")
        raise DataError(f"{file}: not text (a zero byte after {at} characters); convert it to UTF-8 text or remove it")
    return text
