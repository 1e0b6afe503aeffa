"""Change map: the vectors of a run's SFT, RL and skill compared by layer and kind of module.

The result is kept among the run's facts with the keys of the stages compared, so that nothing is computed twice and
a report outlives the checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skillgraft.errors import SkillgraftError
from skillgraft.report.heat import geometry_view
from skillgraft.stages.planned import RECORD
from skillgraft.stages.row_labels import ANSWER_FORMAT

LABELS = ("SFT", "RL", "skill")
GONE = "The checkpoints no longer exist, so it was not computed where in the model the change sits."
TOO_FEW = "Fewer than two of an SFT, an RL and a skill vector are in this run, so there is nothing to compare."


def stage_records(facts: Mapping[str, Any], directory: Path) -> dict[str, dict[str, Any]]:
    """Return what the run's stages recorded, by name, with `directory`; a stage that is gone is left out.

    A stage is looked for under the run's own folder first, where links to all stages lie.
    """
    records = {}
    for stage in facts.get("stages", []):
        for place in (directory / Path(stage["name"]).name, Path(stage["directory"])):
            try:
                record = json.loads((place / RECORD).read_text())
            except (OSError, ValueError):
                continue
            if isinstance(record, dict) and {"kind", "key", "settings", "inputs"} <= record.keys():
                records[stage["name"]] = {**record, "directory": str(place)}
                break
    return records


def kept_geometry(directory: Path) -> dict[str, Any] | None:
    """Return the geometry in a former report in `directory`; None if it cannot be read."""
    try:
        former = json.loads((directory / "report.json").read_text(encoding="utf-8"))["geometry"]
        geometry_view(former)
    except (OSError, LookupError, ValueError, TypeError, AttributeError):
        return None
    return former


def where_it_sits(
    records: Mapping[str, Mapping[str, Any]],
    former: Mapping[str, Any] | None,
    *,
    keys: Sequence[str],
    with_ranks: bool,
    progress: Callable[[str], Any] | None = None,
) -> dict[str, Any]:
    """Return the geometry of the run's vectors (see `facts.Geometry`): `kept` where it still holds, else computed.

    `keys` are those of all stages of the run as it is now, their folders there or not: `kept` holds as long as every
    stage that it was computed from is among them. On failure, `missing` holds the reason.
    """
    known = (
        dict(former) if former and former["cells"] and all(key in keys for key in former.get("keys", [""])) else None
    )
    if known and (known["ranks"] or not with_ranks):
        return known
    vectors, base = _vectors(records)
    if len(vectors) < 2 or base is None:
        return known or _nothing(TOO_FEW if records else GONE)
    if any(not Path(path).is_dir() for one in vectors for path in (one["path"], one["minus"] or base)):
        return known or _nothing(GONE)
    try:
        geometry = _compared(vectors, base, with_ranks, progress)
    except (SkillgraftError, OSError) as error:
        return known or _nothing(f"It could not be computed where in the model the change sits: {error}")
    return {"keys": list(dict.fromkeys(one["key"] for one in vectors)), "ranks": with_ranks, **geometry}


def _nothing(sentence: str) -> dict[str, Any]:
    return {"keys": [], "ranks": False, "vectors": [], "pairs": [], "cells": [], "missing": sentence}


def _vectors(records: Mapping[str, Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """Return SFT of the target, RL, and the skill, as far as the run has them, and the base's directory."""
    base = next((record["inputs"]["base"] for record in records.values() if "base" in record["inputs"]), None)
    by_label: dict[str, dict[str, Any]] = {}
    for record in records.values():
        for skill in skills_of(record):
            skill_record, path = records.get(skill), record["inputs"][skill]
            if (skill_record is not None and skill_record["kind"] != "extract") or _domain(
                path, skill_record
            ) == ANSWER_FORMAT:
                continue  # a control
            target = record["settings"]["target"]
            if records.get(target, {}).get("kind") == "sft":
                by_label.setdefault("SFT", _vector("SFT", target, records[target]["directory"], records[target]["key"]))
            if skill_record is not None:
                path, rl, sft = (
                    skill_record["directory"],
                    skill_record["settings"]["rl"],
                    skill_record["settings"]["sft"],
                )
                if records.get(rl, {}).get("kind") == "rl":
                    minus = records[sft]["directory"] if sft in records else skill_record["inputs"][sft]
                    by_label.setdefault("RL", _vector("RL", rl, records[rl]["directory"], records[rl]["key"], minus))
            by_label.setdefault("skill", _vector("skill", Path(skill).name, path, (skill_record or record)["key"]))
    return [by_label[label] for label in LABELS if label in by_label], base


def skills_of(record: Mapping[str, Any]) -> list[str]:
    """Return the skills that a stage injected, as the recipe names them; none for other stages."""
    settings = record["settings"]
    if record["kind"] != "inject":
        return []
    return [settings["skill"]] if settings.get("skill") else [one["skill"] for one in settings["skills"]]


def _vector(label: str, stage: str, path: str, key: str, minus: str | None = None) -> dict[str, Any]:
    return {"label": label, "stage": stage, "path": path, "key": key, "minus": minus}


def _domain(skill: str, record: Mapping[str, Any] | None) -> str | None:
    if record is not None:
        return record["settings"].get("domain")
    try:
        return json.loads((Path(skill) / "skill.json").read_text()).get("domain")
    except (OSError, ValueError):
        return None


def _compared(
    vectors: list[dict[str, Any]], base: str, with_ranks: bool, progress: Callable[[str], Any] | None
) -> dict[str, Any]:
    from skillgraft.geometry import compare
    from skillgraft.geometry.operands import CHECKPOINT, DIFFERENCE, SKILL, VectorSpec

    operands = [
        VectorSpec(
            one["label"],
            one["label"],
            SKILL if one["label"] == "skill" else DIFFERENCE if one["minus"] else CHECKPOINT,
            Path(one["path"]),
            Path(one["minus"]) if one["minus"] else None,
        )
        for one in vectors
    ]
    comparison = compare(operands, base, with_spectra=with_ranks, progress=progress)
    return {
        "vectors": [
            {"label": one["label"], "stage": one["stage"], **_of_vector(measured), "zeros": measured["zeros"]}
            for one, measured in zip(vectors, comparison["vectors"], strict=True)
        ],
        "pairs": [
            {name: pair[name] for name in ("one", "other", "cosine", "z", "same_sign", "sentence")}
            for pair in comparison["pairs"]
        ],
        "cells": [
            {
                "layer": cell["layer"],
                "kind": cell["kind"],
                "vectors": [_of_vector(one) for one in cell["vectors"]],
                "pairs": [{"cosine": pair["cosine"]} for pair in cell["pairs"]],
            }
            for cell in comparison["cells"]
        ],
        "missing": "",
    }


def _of_vector(measured: Mapping[str, Any]) -> dict[str, Any]:
    measures = {"norm": measured["norm"], "relative_norm": measured.get("relative_norm")}
    rank = measured.get("spectrum", {}).get("effective_rank")
    return measures if rank is None else {**measures, "effective_rank": rank}
