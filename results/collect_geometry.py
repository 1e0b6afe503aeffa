"""Keep what a comparison measured: vectors, pairs and groups, by module kind and by layers, without single tensors.

python results/collect_geometry.py compare.json recipes/past-squad.yaml results/geometry.json "a note on operands"
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DIGITS = 5
LEFT_OUT = ("path", "minus", "base", "tensors", "cells", "seconds", "bytes_read", "kinds", "layers")
KEPT_OF_VECTORS, KEPT_OF_PAIRS = ("norm", "relative_norm"), ("cosine", "z", "rms_z")


def compact(value: Any) -> Any:
    """Return JSON data without places on this machine and single tensors, numbers rounded to five digits."""
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items() if key not in LEFT_OUT}
    if isinstance(value, list):
        return [compact(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def parts(measured: dict[str, Any]) -> dict[str, Any]:
    """Return, for each module kind or group of layers, one list a measure in the order of vectors or pairs."""
    return {
        name: {key: [compact(one.get(key)) for one in part["vectors"]] for key in KEPT_OF_VECTORS}
        | {key: [compact(one[key]) for one in part["pairs"]] for key in KEPT_OF_PAIRS}
        for name, part in measured.items()
    }


def collect(comparison: Path, recipe: str, note: str) -> dict[str, Any]:
    """Return the measured part of `skillgraft compare --json`, with the recipe of its operands and the commit."""
    facts = json.loads(comparison.read_text())
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    summary = {"recipe": recipe, "operands": note, "commit": git.stdout.strip(), **compact(facts)}
    return summary | {name: parts(facts[name]) for name in ("kinds", "layers")}


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    comparison, recipe, out, note = sys.argv[1:]
    content = collect(Path(comparison), recipe, note)
    Path(out).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
