"""Reading and writing a small JSON object with errors that name the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from skillgraft.checkpoint.json_object import refuse_odd_values
from skillgraft.checkpoint.regular_file import open_regular, read_text
from skillgraft.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000  # three times the largest tokenizer.json in use; parsing takes up to 20 times as much


def read_json_object(path: Path, max_bytes: int = MAX_JSON_BYTES, *, strict: bool = False) -> dict[str, Any]:
    """Return the JSON object in `path`; with `strict`, one that can be written as JSON again.

    Raises `MissingPathError` when there is no such file and `CheckpointError` when it can't be read, has more than
    `max_bytes`, isn't a JSON object, or is `strict` and holds what `refuse_odd_values` refuses.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise CheckpointError(
                f"{path}: has {size} bytes, expected at most {max_bytes}; the file is damaged: download it again"
            )
        try:
            value = json.loads(read_text(file, size))
            if strict:
                refuse_odd_values(value)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: not readable as JSON ({error}); the file is damaged: download or write it again"
            ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: got a JSON {type(value).__name__}, expected an object")
    return value


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON with a final newline; NaN and infinity are refused with `ValueError`."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
