"""Change map: the vectors of a run's SFT, RL and skill compared by layer and kind of module.

The result is kept among the run's facts with the keys of the stages compared, so that nothing is computed twice and
a report outlives the checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from skillgraft.errors import SkillgraftError
from skillgraft.report.facts import Geometry, StageRecord, VectorMeasures
from skillgraft.report.heat import geometry_view
from skillgraft.stages.planned import RECORD
from skillgraft.stages.row_labels import ANSWER_FORMAT
from skillgraft.support.progress import Progress

LABELS = ("SFT", "RL", "skill")
GONE = "The checkpoints no longer exist, so it was not computed where in the model the change sits."
TOO_FEW = "Fewer than two of an SFT, an RL and a skill vector are in this run, so there is nothing to compare."


Phases = Callable[[str], Progress | None]
"""Called at the beginning of a phase by its name; returns the phase's progress callback."""


@dataclass(frozen=True)
class _Source:
    """One vector to be compared: its label, its stage or skill, the directories, and the key of the stage."""

    label: str
    stage: str
    path: str
    key: str
    minus: str | None = None


def stage_records(facts: Mapping[str, Any], directory: Path) -> dict[str, StageRecord]:
    """Return the records of the run's stages by name; a stage that no longer exists is left out.

    A stage is searched under the run's own folder first, which holds links to all stages.
    """
    records: dict[str, StageRecord] = {}
    for stage in facts.get("stages", []):
        for place in (directory / Path(stage["name"]).name, Path(stage["directory"])):
            try:
                record = json.loads((place / RECORD).read_text())
            except (OSError, ValueError):
                continue
            if isinstance(record, dict) and {"kind", "key", "settings", "inputs"} <= record.keys():
                records[stage["name"]] = cast(StageRecord, {**record, "directory": str(place)})
                break
    return records


def former_geometry(directory: Path) -> Geometry | None:
    """Return the geometry in a former report in `directory`; None if it cannot be read."""
    try:
        former = json.loads((directory / "report.json").read_text(encoding="utf-8"))["geometry"]
        geometry_view(former)
    except (OSError, LookupError, ValueError, TypeError, AttributeError):
        return None
    return former


def map_change(
    records: Mapping[str, StageRecord],
    former: Geometry | None,
    *,
    keys: Sequence[str],
    with_ranks: bool,
    progress: Phases | None = None,
) -> Geometry:
    """Return the geometry of the run's vectors: `former` if it still holds, else computed.

    `keys` are those of all stages of the run as it is now, whether or not their folders exist: `former` holds as long
    as every stage that it was computed from is among them. On failure, `missing` holds the reason.
    """
    holds = former is not None and former["cells"] and all(key in keys for key in former.get("keys", [""]))
    known = former if holds else None
    if known and (known["ranks"] or not with_ranks):
        return known
    vectors, base = _vectors(records)
    if len(vectors) < 2 or base is None:
        return known or _nothing(TOO_FEW if records else GONE)
    if any(not Path(path).is_dir() for one in vectors for path in (one.path, one.minus or base)):
        return known or _nothing(GONE)
    try:
        geometry = _compared(vectors, base, with_ranks, progress)
    except (SkillgraftError, OSError) as error:
        return known or _nothing(f"It could not be computed where in the model the change sits: {error}")
    return geometry


def _nothing(sentence: str) -> Geometry:
    return {"keys": [], "ranks": False, "vectors": [], "pairs": [], "cells": [], "missing": sentence}


def _vectors(records: Mapping[str, StageRecord]) -> tuple[list[_Source], str | None]:
    """Return SFT of the target, RL, and the skill, as far as the run has them, and the base's directory."""
    base = next((record["inputs"]["base"] for record in records.values() if "base" in record["inputs"]), None)
    by_label: dict[str, _Source] = {}
    for record in records.values():
        for skill in skills_of(record):
            skill_record, path = records.get(skill), record["inputs"][skill]
            trained = skill_record is None or skill_record["kind"] == "extract"
            if not trained or _domain(path, skill_record) == ANSWER_FORMAT:
                continue  # a control
            target = record["settings"]["target"]
            if target in records and records[target]["kind"] == "sft":
                by_label.setdefault("SFT", _Source("SFT", target, records[target]["directory"], records[target]["key"]))
            if skill_record is not None:
                path = skill_record["directory"]
                rl, sft = (skill_record["settings"][name] for name in ("rl", "sft"))
                if rl in records and records[rl]["kind"] == "rl":
                    minus = records[sft]["directory"] if sft in records else skill_record["inputs"][sft]
                    by_label.setdefault("RL", _Source("RL", rl, records[rl]["directory"], records[rl]["key"], minus))
            by_label.setdefault("skill", _Source("skill", Path(skill).name, path, (skill_record or record)["key"]))
    return [by_label[label] for label in LABELS if label in by_label], base


def skills_of(record: StageRecord) -> list[str]:
    """Return the skills that a stage injected, as the recipe names them; none for other stages."""
    settings = record["settings"]
    if record["kind"] != "inject":
        return []
    return [settings["skill"]] if settings.get("skill") else [one["skill"] for one in settings["skills"]]


def _domain(skill: str, record: StageRecord | None) -> str | None:
    if record is not None:
        return record["settings"].get("domain")
    try:
        return json.loads((Path(skill) / "skill.json").read_text()).get("domain")
    except (OSError, ValueError):
        return None


def _compared(vectors: list[_Source], base: str, with_ranks: bool, progress: Phases | None) -> Geometry:
    from skillgraft.geometry import compare
    from skillgraft.geometry.operands import CHECKPOINT, DIFFERENCE, SKILL, VectorSpec

    operands = [
        VectorSpec(
            one.label,
            one.label,
            SKILL if one.label == "skill" else DIFFERENCE if one.minus else CHECKPOINT,
            Path(one.path),
            Path(one.minus) if one.minus else None,
        )
        for one in vectors
    ]
    comparison = compare(operands, base, with_spectra=with_ranks, progress=progress)
    return {
        "keys": list(dict.fromkeys(one.key for one in vectors)),
        "ranks": with_ranks,
        "vectors": [
            {"label": one.label, "stage": one.stage, **_of_vector(measured), "zeros": measured["zeros"]}
            for one, measured in zip(vectors, comparison["vectors"], strict=True)
        ],
        "pairs": [
            {
                "one": pair["one"],
                "other": pair["other"],
                "cosine": pair["cosine"],
                "z": pair["z"],
                "same_sign": pair["same_sign"],
                "sentence": pair["sentence"],
            }
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


def _of_vector(measured: Mapping[str, Any]) -> VectorMeasures:
    measures: VectorMeasures = {"norm": measured["norm"], "relative_norm": measured.get("relative_norm")}
    rank = measured.get("spectrum", {}).get("effective_rank")
    return measures if rank is None else {**measures, "effective_rank": rank}
