"""Row labels: what a table calls a model, which role it plays, and what it cost to make. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from skillgraft.settings.base import BASE, references

if TYPE_CHECKING:
    from skillgraft.stages.planned import PlannedStage

ANSWER_FORMAT = "answer-format"
"""The domain that a skill names when it was learnt from the form of answers alone."""


class RowLabel(NamedTuple):
    """A row's role in the table (base, sft, grafted, control, …), its label and a note on what it is."""

    role: str
    label: str
    note: str


SKILL = RowLabel("grafted", "skill", "")
FORMAT = RowLabel("control", "answer format", "control: a vector learnt from the form of answers alone")


def label_of(stages: Mapping[str, PlannedStage], model: str) -> RowLabel:
    """Return what a table calls `model`: the base, a stage's result, or a checkpoint from elsewhere."""
    if model == BASE:
        return RowLabel("base", "base", "the pre-trained model, which never saw the documents")
    if model not in stages:
        return RowLabel("other", Path(model).name, f"the checkpoint {model}")
    return stages[model].kind.label(stages, model)


def result_label(stages: Mapping[str, PlannedStage], model: str) -> RowLabel:
    """Label a model by its stage's name: the default."""
    return RowLabel("other", model, f"the result of the stage {model}")


def skill_label(stages: Mapping[str, PlannedStage], skill: str) -> RowLabel:
    """Return what a skill is: a stage's result, or one from elsewhere by its manifest."""
    if skill in stages:
        return stages[skill].kind.label(stages, skill)
    manifest = json.loads((Path(skill) / "skill.json").read_text())
    return FORMAT if manifest.get("domain") == ANSWER_FORMAT else SKILL


def injected_label(stages: Mapping[str, PlannedStage], skills: Sequence[str], scale: str, knows: bool) -> RowLabel:
    """Return what `skills` make of a model that read the documents (`knows`) or of the base."""
    kinds = {skill_label(stages, skill) for skill in skills}
    kind = kinds.pop() if len(kinds) == 1 else SKILL
    target = "SFT" if knows else "base"
    if kind.role == "control":
        return RowLabel("control", f"{target} + {kind.label}", f"{kind.note}, {scale}")
    if not knows:
        note = f"control: the skill on the base, which never saw the documents, {scale}"
        return RowLabel("control", "base + skill", note)
    elsewhere = "" if stages.keys() >= set(skills) else "; the cost of the skill, paid once elsewhere, is not in it"
    note = f"the SFT model with the skill vector injected{elsewhere}"
    return RowLabel("grafted", f"SFT + skill ({scale})", note)


def training_cost(stages: Mapping[str, PlannedStage], models: Sequence[str]) -> dict[str, float]:
    """Return seconds and FLOPs of every stage that led to `models`; what a skill from elsewhere cost is not in it."""
    names = ancestors(stages, models)
    records = [stages[name].record() for name in names if stages[name].cached]
    return {
        "train_seconds": sum(record["seconds"] for record in records),
        "train_flops": sum(record["facts"].get("flops", 0.0) for record in records),
    }


def ancestors(stages: Mapping[str, PlannedStage], models: Sequence[str]) -> list[str]:
    """Return the stages that led to `models`, those included."""
    names: dict[str, None] = {}
    waiting = list(models)
    while waiting:
        name = waiting.pop()
        if name in stages and name not in names:
            names[name] = None
            waiting += [reference for _, reference in references(stages[name].settings)]
    return list(names)
