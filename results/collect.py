"""Keep what a finished run measured: tables, curves and costs as JSON, without questions or answers.

python results/collect.py runs/past-squad recipes/past-squad.yaml results/past-squad.json

Pairs of rows in different tables of one run, asked the same questions, are compared where they are named:
`… results/x.json with_rewrites/past50=open_book/base+gold`.
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


def across(run: Path, pairs: list[list[str]]) -> list[dict]:
    """Return the paired differences of rows `STAGE/ROW` of different tables on the questions that both were asked."""
    from skillgraft.data.documents import read_documents, read_questions
    from skillgraft.evals.table import differences

    raws, asked = {}, {}
    for row in (row for pair in pairs for row in pair):
        stage, _, name = row.partition("/")
        settings = json.loads((run / stage / "stage.json").read_text())["settings"]
        asked[row] = settings["questions"], settings["limit_documents"]
        raws[row] = {**json.loads((run / stage / "answers.json").read_text())[name], "retention": []}
    if len(set(asked.values())) > 1:
        raise SystemExit(f"the rows were not asked the same: {asked}")
    questions, limit = next(iter(asked.values()))
    documents = read_documents(Path(questions).parent, limit)
    labels = {row: row for row in raws}
    return differences(raws, labels, [tuple(pair) for pair in pairs], read_questions(Path(questions), documents))


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    run, recipe, out, *pairs = sys.argv[1:]
    content = collect(Path(run), recipe)
    if pairs:
        content["across_stages"] = across(Path(run), [pair.split("=") for pair in pairs])
    Path(out).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
