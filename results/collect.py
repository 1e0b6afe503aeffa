"""Keep what a finished run measured: tables, curves and costs as JSON, without questions or answers.

python results/collect.py runs/past-squad recipes/past-squad.yaml results/past-squad.json
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def collect(run: Path, recipe: str) -> dict:
    """Return the measured part of a run's report, with the recipe and the commit that made it."""
    facts = json.loads((run / "report.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True).stdout.strip()
    kept = ("title", "created", "machine", "versions", "training", "skills")
    stages = [{key: stage[key] for key in ("name", "kind", "seconds", "key")} for stage in facts["stages"]]
    return {
        "recipe": recipe,
        "commit": commit + (" with uncommitted changes" if dirty else ""),
        **{key: facts[key] for key in kept},
        "stages": stages,
        "evaluations": [
            {key: evaluation[key] for key in ("stage", "questions", "documents", "rows", "comparisons")}
            for evaluation in facts["evaluations"]
        ],
    }


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    run, recipe, out = sys.argv[1:]
    Path(out).write_text(json.dumps(collect(Path(run), recipe), indent=1, ensure_ascii=False) + "\n")
