"""General text for replay: text files, or a table with text. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from skillgraft.data.documents import string_field
from skillgraft.data.tables import TABLE_KINDS, TABLES, read_records
from skillgraft.data.text_files import DOCUMENT_KINDS, document_files, is_document_file, whole_text
from skillgraft.errors import DataError, MissingPathError

EXPECTED = f"a folder of text files ({DOCUMENT_KINDS}), one such file, or a table ({TABLE_KINDS}) with text"


def read_replay(path: Path) -> list[str]:
    """Return the texts at `path`: of a folder's text files by name, of one such file, or of a table's records.

    Raises:
        MissingPathError: nothing there.
        DataError: another kind of file, a record without text, no text at all, a binary file or a broken encoding.
    """
    if not path.exists():
        raise MissingPathError(f"replay: {path} does not exist; expected {EXPECTED}")
    if path.is_dir():
        texts = [whole_text(file) for file in document_files(path)]
    elif is_document_file(path):
        texts = [whole_text(path)]
    elif path.suffix.lower() in TABLES:
        texts = [string_field(record, "text", where) for where, record in read_records(path)]
    else:
        raise DataError(f"replay: {path} is a {path.suffix or 'file without suffix'}, expected {EXPECTED}")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError(f"replay: {path} holds no text; expected {EXPECTED}")
    return texts
