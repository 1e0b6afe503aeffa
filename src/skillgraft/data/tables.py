"""Records of a table: JSON Lines, a JSON array, CSV, TSV or Parquet, each with where it stands. Loads no torch."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from skillgraft.data.text_files import read_text
from skillgraft.errors import DataError

Record = tuple[str, dict[str, Any]]
"""Where a record stands, for messages, and the record."""

_PACKED = {".gz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".tar"}


def read_records(file: Path) -> Iterator[Record]:
    """Yield (location, object) per record, by the file's suffix; without a known one it is JSON Lines.

    Raises `DataError` for a file that is no such table and for a record that is not an object of text.
    """
    suffix = file.suffix.lower()
    if suffix in _PACKED:
        raise DataError(f"{file}: compressed ({suffix}); unpack it first")
    yield from TABLES.get(suffix, _json_lines)(file)


def table_in(folder: Path, name: str) -> Path | None:
    """Return the table `name` of a folder, such as `documents.jsonl` or `documents.csv`; `DataError` for several."""
    files = [folder / f"{name}{suffix}" for suffix in TABLES if (folder / f"{name}{suffix}").is_file()]
    if len(files) > 1:
        raise DataError(f"{name}: {folder} holds {' and '.join(file.name for file in files)}; keep one, or name it")
    return files[0] if files else None


def _json_lines(file: Path) -> Iterator[Record]:
    text = read_text(file)
    if text.lstrip()[:1] == "[" and (items := _array(text)) is not None:
        yield from _items(file, items)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            yield where, _object(_loaded(line, where), where, "one JSON object a line")


def _json(file: Path) -> Iterator[Record]:
    """Read a list of objects, an object with such a list under `data` (SQuAD's nested form too), or JSON Lines."""
    text = read_text(file)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error):  # one object a line in spite of its name
            yield from _json_lines(file)
            return
        raise DataError(f"{file}: not JSON ({error}); expected a list of objects") from error
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = [each for article in content["data"] for each in _squad(article)]
    yield from _items(file, content if isinstance(content, list) else [content])


def _array(text: str) -> list[Any] | None:
    """Return a JSON array of objects, None for anything else (JSON Lines of lists among it)."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, list) and any(isinstance(item, dict) for item in content) else None


def _items(file: Path, items: list[Any]) -> Iterator[Record]:
    for number, item in enumerate(items, start=1):
        where = f"{file}, item {number}"
        yield where, _object(_checked(item, where), where, "a list of JSON objects")


def _squad(article: Any) -> Iterator[Any]:
    """Yield an article of SQuAD's JSON by paragraph, as a document that has its questions under `qas`."""
    if not isinstance(article, dict) or not isinstance(article.get("paragraphs"), list):
        yield article
        return
    title = article.get("title", "")
    for number, paragraph in enumerate(article["paragraphs"], start=1):
        if not isinstance(paragraph, dict):
            yield paragraph
        else:
            yield {"id": f"{title}/{number}", "title": title, "text": paragraph.get("context"), **paragraph}


def _separated(separators: str) -> Callable[[Path], Iterator[Record]]:
    def read(file: Path) -> Iterator[Record]:
        """Read rows under a header; the separator is the one that occurs most in the header."""
        text = read_text(file)
        header = text.lstrip("\n").partition("\n")[0]
        csv.field_size_limit(sys.maxsize)
        rows = csv.reader(StringIO(text, newline=""), delimiter=max(separators, key=header.count), strict=True)
        names: list[str] = []
        try:
            for row in rows:
                where = f"{file}, line {rows.line_num}"
                if not names:
                    names = [name.strip() for name in row]
                elif len(row) > len(names):
                    raise DataError(
                        f"{where}: {len(row)} cells under a header of {len(names)} ({', '.join(names)}); put a cell "
                        "that holds the separator into double quotes"
                    )
                elif any(cell.strip() for cell in row):
                    yield where, dict(zip(names, row, strict=False))
        except csv.Error as error:
            raise DataError(f"{file}, line {rows.line_num}: not CSV ({error}); expected rows under a header") from error

    return read


def _parquet(file: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
        records = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{file}: not a parquet file that can be read ({error}); fetch it again") from error
    for number, record in enumerate(records, start=1):
        yield f"{file}, row {number}", record


def _loaded(line: str, where: str) -> Any:
    try:
        return _checked(json.loads(line), where)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: not JSON ({error}); expected one JSON object a line") from error


def _checked(record: Any, where: str) -> Any:
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: contains a lone surrogate, which is not text; remove it") from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply to be a record") from error
    return record


def _object(record: Any, where: str, expected: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{where}: got a {type(record).__name__}, expected {expected}")
    return record


TABLES: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _separated(",;\t"),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}
"""Readers of tables by the file's suffix."""

TABLE_KINDS = ", ".join(TABLES)
