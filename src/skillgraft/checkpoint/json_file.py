"""Reading and writing a small JSON object with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skillgraft.errors import CheckpointError, MissingPathError


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`.

    Raises `MissingPathError` when there is no such file and `CheckpointError` when it isn't a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingPathError(f"{path}: no such file") from error
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
