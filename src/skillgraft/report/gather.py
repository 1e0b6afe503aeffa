"""From a run's stage records to the facts of its report. Loads no torch."""

from __future__ import annotations

import copy
import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.checkpoint.provenance import software_versions
from skillgraft.recipe.schema import Recipe
from skillgraft.report.change_map import Phases, map_change, stage_records
from skillgraft.report.facts import Base, Evaluation, Facts, Geometry, Machine, Skill, StageRecord, Training
from skillgraft.report.scales import sweeps
from skillgraft.settings.base import BASE
from skillgraft.stages.inject import InjectStage
from skillgraft.stages.planned import PlannedStage


def gather(
    recipe: Recipe,
    recipe_file: Path,
    resolved: str,
    command: str,
    stages: list[PlannedStage],
    reused: set[str],
    former: Geometry | None = None,
    progress: Phases | None = None,
) -> Facts:
    """Return the facts of a finished run; `reused` names the stages that did not run.

    `former` is the geometry of a former report; it is used if it still holds, and `progress` is called when it is
    computed again.
    """
    records = {stage.name: cast(StageRecord, {**stage.record(), "directory": str(stage.directory)}) for stage in stages}
    evaluations: list[Evaluation] = [
        _with_eval_seconds(json.loads((stage.directory / "evaluation.json").read_text()))
        for stage in stages
        if stage.kind.makes == "table"
    ]
    versions = software_versions()
    note_targets(evaluations, records)
    return {
        "title": recipe.title or recipe.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "skillgraft_version": versions["skillgraft"],
        "recipe_path": str(recipe_file),
        "recipe_yaml": resolved,
        "base": _base(recipe, stages),
        "command": command,
        "machine": machine(records),
        "versions": versions,
        "evaluations": evaluations,
        "training": [
            _training(stage.name, records[stage.name]) for stage in stages if "curve" in records[stage.name]["facts"]
        ],
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind.name,
                "seconds": records[stage.name]["seconds"],
                "cached": stage.name in reused,
                "key": stage.key,
                "directory": str(stage.directory),
                "data": dict(stage.data),
            }
            for stage in stages
        ],
        "skills": [
            _skill(stage, skill, scale, records[stage.name], {each.name for each in stages})
            for stage in stages
            if isinstance(stage.settings, InjectStage)
            for skill, scale in stage.settings.injected
        ],
        "sweeps": sweeps(records, evaluations),
        "geometry": map_change(
            records, former, keys=[stage.key for stage in stages], with_ranks=False, progress=progress
        ),
    }


def _base(recipe: Recipe, stages: Sequence[PlannedStage]) -> Base:
    path = next((stage.inputs[BASE] for stage in stages if BASE in stage.inputs), None)
    return {"name": recipe.base, "fingerprint": fingerprint_checkpoint(path) if path else ""}


def renew(facts: Facts, directory: Path, *, with_ranks: bool, progress: Phases | None = None) -> Facts:
    """Return the facts of a former report with what can be read or computed from the stages that are still there."""
    records = stage_records(facts, directory)
    evaluations = copy.deepcopy(facts["evaluations"])
    note_targets(evaluations, records)
    stages = copy.deepcopy(facts["stages"])
    for stage in stages:  # former versions cut the keys
        if stage["name"] in records:
            stage["key"] = records[stage["name"]]["key"]
    return {
        **facts,
        "stages": stages,
        "evaluations": evaluations,
        "sweeps": sweeps(records, evaluations) or facts.get("sweeps", []),
        "geometry": map_change(
            records,
            facts.get("geometry"),
            keys=[stage["key"] for stage in stages],
            with_ranks=with_ranks,
            progress=progress,
        ),
    }


def note_targets(evaluations: Sequence[Evaluation], records: Mapping[str, StageRecord]) -> None:
    """Note in each row that was made by injection which other row it was put on."""
    for evaluation in evaluations:
        labels = {row["model"]: row["label"] for row in evaluation["rows"]}
        for row in evaluation["rows"]:
            record = records.get(row["model"])
            if record is not None and record["kind"] == "inject" and record["settings"]["target"] in labels:
                row["on"] = labels[record["settings"]["target"]]


def machine(records: Mapping[str, StageRecord]) -> Machine:
    """Describe this machine; the precision is the one that a stage recorded when it ran."""
    precision = next((r["facts"]["precision"] for r in records.values() if "precision" in r["facts"]), "")
    device, _, arithmetic = precision.partition(", ")
    most = max((r["facts"].get("processes", 1) for r in records.values()), default=1)
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": device or "cpu",
        "precision": arithmetic + (f", {most} processes" if most > 1 else ""),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _with_eval_seconds(evaluation: Evaluation) -> Evaluation:
    for row in evaluation["rows"]:
        row["cost"]["eval_seconds"] = row["seconds"]
    return evaluation


def _training(name: str, record: StageRecord) -> Training:
    facts = record["facts"]
    return {
        "stage": name,
        "kind": record["kind"],
        "seconds": record["seconds"],
        "tokens": facts["tokens"],
        "curve": facts["curve"],
        "headline": facts["headline"],
    }


def _skill(stage: PlannedStage, skill: str, scale: float, record: StageRecord, names: set[str]) -> Skill:
    directory = stage.inputs[skill]
    manifest = json.loads((directory / "skill.json").read_text())
    tensors = manifest["tensors"].values()
    ranks = {t["rank"] for t in tensors if t.get("rank")}
    facts = record["facts"]
    return {
        "stage": f"{stage.name} ← {skill if skill in names else directory.name}",
        "form": "lowrank" if ranks else "dense",
        "rank": max(ranks) if ranks else None,
        "size_bytes": (directory / "skill.safetensors").stat().st_size,
        "norm": sum(t["norm"] ** 2 for t in tensors) ** 0.5,
        "scale": facts["scale"] * scale,
        "survived_rounding": facts.get("survived_rounding"),
        "base": manifest["base"].get("id") or manifest["base"]["fingerprint"],
        "domain": manifest.get("domain"),
    }
