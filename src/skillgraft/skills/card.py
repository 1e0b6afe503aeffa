"""The card of a skill: `README.md` with front matter that model hubs read."""

from __future__ import annotations

import math

import yaml

from skillgraft.skills.manifest import Manifest


def card_text(manifest: Manifest) -> str:
    """Return the README of a skill: YAML front matter (base_model, tags, license), facts, use and scores."""
    front: dict[str, object] = {"tags": ["skillgraft", "skill-vector", "task-arithmetic"]}
    if manifest.base.id:
        front["base_model"] = manifest.base.id
    if manifest.licence:
        front["license"] = manifest.licence
    norm = math.sqrt(math.fsum(entry.norm**2 for entry in manifest.tensors.values()))
    lowrank = sum(entry.form == "lowrank" for entry in manifest.tensors.values())
    base = manifest.base.id or "unknown id" if manifest.base_is_known else "not recorded; recognised by its weights"
    facts = {
        "formula": manifest.formula,
        "domain": manifest.domain or "not stated",
        "base": f"{base} (`{manifest.base.fingerprint}`)",
        "SFT model": f"`{manifest.sft.fingerprint}`",
        "RL model": f"`{manifest.rl.fingerprint}`",
        "tensors": f"{len(manifest.tensors)}, {lowrank} of them low rank",
        "Frobenius norm": f"{norm:.6g}",
        "reconstruction error": f"{manifest.reconstruction_error:.3g} (relative Frobenius)",
        "recipe": manifest.recipe or "not stated",
        "seed": "not stated" if manifest.seed is None else str(manifest.seed),
        "licence": manifest.licence or "not stated",
        "made": f"{manifest.created} with Skillgraft {manifest.skillgraft_version}",
    }
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=True, allow_unicode=True).strip(),
        "---",
        "",
        f"# Skill: {manifest.domain or 'unnamed domain'}",
        "",
        "A skill vector: what reinforcement learning changed in a model's weights, kept as a difference that can be",
        "added to another fine-tune of the same base (Parametric Skill Transfer, arXiv 2601.11258). These are weights,",
        "not a prompt file of the kind that is called an agent skill.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {_cell(value)} |" for key, value in facts.items()),
        "",
        "## Use",
        "",
        "```sh",
        "skillgraft inject --target YOUR-FINE-TUNE-OF-THE-BASE --skill THIS-DIRECTORY --scale 1.0 -o grafted",
        "```",
        "",
        *_score_lines(manifest),
    ]
    return "\n".join(lines)


def _score_lines(manifest: Manifest) -> list[str]:
    if not manifest.scores:
        return []
    columns = list(dict.fromkeys(key for row in manifest.scores for key in row))
    rows = ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in manifest.scores]
    head = "| " + " | ".join(map(_cell, columns)) + " |"
    return ["## Scores", "", head, "|" + "---|" * len(columns), *rows, ""]


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
