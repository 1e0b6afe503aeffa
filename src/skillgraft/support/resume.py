"""What took long to compute, kept as JSON so that a run that goes on after a kill does not compute it again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def kept_in(file: Path, compute: Callable[[], Any]) -> Any:
    """Return what the file holds; where there is none, what `compute` returns, written whole before that."""
    if not file.exists():
        part = file.with_suffix(".part")
        part.write_text(json.dumps(compute()))
        part.rename(file)
    return json.loads(file.read_text())
