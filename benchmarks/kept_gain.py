"""What is kept of a skill's gain, against the size of the artifact, for every storage form.

    python benchmarks/kept_gain.py --skill SKILL --target SFT --questions Q.jsonl --work DIR --out FILE.json

Each point packs the skill, injects it into the target and asks all questions closed-book; the share of the gain has a
paired interval over documents. What was measured is kept in --work: a second run goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from skillgraft.arithmetic import inject
from skillgraft.checkpoint.fingerprint import fingerprint_file
from skillgraft.compression import describe, pack
from skillgraft.compression.gain import kept_share
from skillgraft.data.metrics import METRICS
from skillgraft.data.tasks import read_questions
from skillgraft.evals.answers import evaluate_checkpoint
from skillgraft.evals.intervals import bootstrap
from skillgraft.models.precision import describe as precision
from skillgraft.skills import load_skill

POINTS: list[tuple[str, dict[str, Any]]] = [
    ("packed", {"share": 0.01}),
    ("lowrank", {"rank": 32, "dtype": "bfloat16"}),
    ("mask", {"density": 0.1, "dtype": "bfloat16"}),
    ("packed", {"share": 0.001}),
    ("mask", {"density": 0.01, "dtype": "bfloat16"}),
    ("lowrank", {"rank": 8, "dtype": "bfloat16"}),
    ("packed", {"share": 0.003}),
    ("packed", {"share": 0.03}),
    ("mask", {"density": 0.001, "dtype": "bfloat16"}),
    ("lowrank", {"rank": 128, "dtype": "bfloat16"}),
    ("lowrank", {"rank": 2, "dtype": "bfloat16"}),
    ("dense", {"dtype": "bfloat16"}),
    ("sparse", {}),
]
"""`share` is the budget as a share of the model in float32; `sparse` is lossless, so its answers are the original's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skill", required=True)
    parser.add_argument("--target", required=True, type=Path)
    parser.add_argument("--questions", required=True, type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--localise-on", type=Path, help="other questions, on which a mask of 1% is optimised too")
    parser.add_argument("--localise-target", type=Path, help="the SFT checkpoint whose documents those are about")
    parser.add_argument("--only-kept", action="store_true", help="measure nothing more: write what --work holds")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    skill, questions = load_skill(options.skill), read_questions(options.questions)
    clusters = [question.document for question in questions]
    model_bytes = (options.target / "model.safetensors").stat().st_size

    def measure(name: str, form: str | None, settings: dict[str, Any]) -> dict[str, Any]:
        kept = options.work / f"{name}.json"
        if kept.exists():
            return json.loads(kept.read_text())
        began, packed, model = time.monotonic(), options.work / name, options.work / "model"
        for folder in (packed, model):
            shutil.rmtree(folder, ignore_errors=True)
        facts: dict[str, Any] = {}
        source = skill
        if form is not None:
            given = dict(settings)
            if "share" in given:
                given["budget"] = int(given.pop("share") * model_bytes)
            if given.pop("localised", False):
                given |= {"localise_on": options.localise_on, "target": options.localise_target}
            source = pack(skill, packed, form, **given)
            facts = {**describe(source), "form": form, "pack_seconds": time.monotonic() - began}
            facts.pop("skill")
        target = options.target
        if form == "sparse":
            facts["scores"] = rows["original"]["scores"]
        elif name != "target":
            inject(options.target, source, model, scale=options.scale)
            target = model
        if "scores" not in facts:
            facts["scores"] = evaluate_checkpoint(target, questions, retention=False)["scores"]
        facts["seconds"] = time.monotonic() - began
        for folder in (packed, model):
            shutil.rmtree(folder, ignore_errors=True)
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(facts))
        part.rename(kept)
        return facts

    rows = {}
    for name in ("target", "original"):
        rows[name] = measure(name, None, {})
    localised = ("mask", {"density": 0.01, "dtype": "bfloat16", "localised": True})
    for form, settings in [*POINTS, *([localised] if options.localise_on else [])]:
        name = "-".join([form, *(f"{key}-{value}" for key, value in settings.items())])
        if options.only_kept and not (options.work / f"{name}.json").exists():
            continue
        rows[name] = measure(name, form, settings)
        print(name, f"{rows[name]['size_bytes'] / 1e6:.2f} MB", {m: _mean(rows[name], m) for m in METRICS}, flush=True)
    base, whole = rows["target"]["scores"], rows["original"]["scores"]
    table = []
    for name, facts in rows.items():
        scores = facts.pop("scores")
        row = {"name": name, **facts, **{metric: bootstrap(scores[metric], clusters) for metric in METRICS}}
        if name not in ("target", "original"):
            row["share_of_model"] = facts["size_bytes"] / model_bytes
            row["kept"] = {
                metric: kept_share(base[metric], whole[metric], scores[metric], clusters) for metric in METRICS
            }
        table.append(row)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    found = {
        "benchmark": "kept_gain",
        "skill": {
            "form": skill.form,
            "fingerprint": fingerprint_file(skill.weights_file),
            "domain": skill.manifest.domain,
        },
        "scale": options.scale,
        "questions": len(questions),
        "documents": len(set(clusters)),
        "model_bytes": model_bytes,
        "precision": precision(),
        "git": commit.stdout.strip(),
        "rows": table,
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n")


def _mean(facts: dict[str, Any], metric: str) -> float:
    values = facts["scores"][metric]
    return round(sum(values) / len(values), 4)


if __name__ == "__main__":
    main()
