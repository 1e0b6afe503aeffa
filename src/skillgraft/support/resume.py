"""Results kept on disk, so that a run that resumes after a kill does not compute them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skillgraft.support.atomic import atomic_write_text


def load_or_compute(file: Path, compute: Callable[[], Any]) -> Any:
    """Return the JSON value in `file`; where there is no such file, write what `compute` returns first."""
    if not file.exists():
        atomic_write_text(file, json.dumps(compute()))
    return json.loads(file.read_text(encoding="utf-8"))
