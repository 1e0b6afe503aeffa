"""What a table calls each model, which role it plays and what it cost: read off the recipe's stages. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skillgraft.pipeline.plan import PlannedStage
from skillgraft.recipe import schema
from skillgraft.settings.evaluation import EvalRow
from skillgraft.single_passage_settings import LEARNT, START

ANSWER_FORMAT = "answer-format"
"""The domain that a skill names when it was learnt from the form of answers alone."""


def describe_models(stages: list[PlannedStage], evaluation: PlannedStage) -> dict[str, dict[str, Any]]:
    """Return, for each model and row that `evaluation` names: label, role, note and training cost."""
    by_name = {stage.name: stage for stage in stages}
    found: dict[str, dict[str, Any]] = {}
    for model in evaluation.stage.models:
        role, label, note = _role(by_name, model)
        label = evaluation.stage.labels.get(model, label)
        found[model] = {
            "label": f"{label} ({model})" if label in [each["label"] for each in found.values()] else label,
            "role": role,
            "note": note,
            "cost": _cost(by_name, [model]),
        }
    for row in evaluation.stage.rows:
        role, what, note = _in_the_prompt(row)
        start = found[row.model]["label"] if row.model in found else _role(by_name, row.model)[1]
        label = row.label or f"{start}, {what}"
        found[row.id] = {
            "label": f"{label} ({row.id})" if label in [each["label"] for each in found.values()] else label,
            "role": role,
            "note": note,
            "cost": _cost(by_name, [row.model]),
        }
    return found


def describe_rows(stages: list[PlannedStage], evaluation: PlannedStage) -> dict[str, dict[str, Any]]:
    """Return, for each row of a single-passage stage: label, role, note, cost before it, whether it `learns`."""
    by_name = {stage.name: stage for stage in stages}
    stage = evaluation.stage
    role, label, note = _role(by_name, stage.from_)
    found: dict[str, dict[str, Any]] = {
        START: {"label": label, "role": role if role == "base" else "other", "note": f"start: {note}", "learns": False},
        LEARNT: {
            "label": "SFT on the passage" if role == "base" else f"{label} + SFT on the passage",
            "role": "sft",
            "note": "fine-tuned on each question's passage alone, and discarded after it",
            "learns": True,
        },
    }
    for row, skills in stage.rows.items():
        learns = not skills[0].unread
        names = [each.skill for each in skills]
        scale = ", ".join(f"λ = {each.scale:g}" for each in skills)
        role, label, note = _injected(
            by_name, names, scale if len(skills) == 1 else f"{len(skills)} skills, {scale}", learns
        )
        others = {each["label"] for each in found.values()}
        found[row] = {
            "label": f"{label} ({row})" if label in others else label,
            "role": role,
            "note": note,
            "learns": learns,
            "on": found[LEARNT if learns else START]["label"],
        }
    for row, known in found.items():
        known["cost"] = _cost(by_name, [stage.from_, *(each.skill for each in stage.rows.get(row, []))])
    return found


DESCRIBE = {"eval": describe_models, "single_passage": describe_rows}
"""Kind of stage that makes a table -> what describes its rows."""


def _in_the_prompt(row: EvalRow) -> tuple[str, str, str]:
    """Return a row's role, what its label says of the prompt, and its note."""
    if row.shots:
        note = (
            f"few-shot: {row.shots} worked examples from other questions stand in the prompt, drawn for each question"
        )
        return "few_shot", f"{row.shots}-shot: worked examples in the prompt", note
    if row.context == "gold":
        return "open_book", "its document in the prompt", "open book: the document that is asked about, found by nobody"
    note = f"open book: the {row.top_k} chunks that BM25 ranks first of all documents stand in the prompt"
    return "open_book", f"BM25 top {row.top_k} in the prompt", note


def _role(stages: Mapping[str, PlannedStage], model: str) -> tuple[str, str, str]:
    if model == schema.BASE:
        return "base", "base", "the pre-trained model, which never saw the documents"
    if model not in stages:
        return "other", Path(model).name, f"the checkpoint {model}"
    stage = stages[model].stage
    if stage.kind == "sft":
        if (before := _learnt_before(stages, stage.from_)) is not None:
            return before
        what = "documents" if stage.documents else "questions"
        renderings = schema.synthesis_named(stage.documents or stage.questions)
        return "sft", "SFT", f"fine-tuned on the {what}" + (f" of the stage {renderings}" if renderings else "")
    if stage.kind == "rl":
        return "other", f"RL ({model})", "trained with RL on these questions or others: no skill was injected"
    if stage.kind == "distil":
        return "other", "SDFT", "distilled into itself: with the document in its context it taught itself without"
    if stage.kind == "self_edit":
        return "other", f"writer ({model})", "trained to write renderings that are learnt well, not on these documents"
    if stage.kind != "inject":
        return "other", model, f"the result of the stage {model}"
    skills = [skill for skill, _ in stage.injected]
    by_pattern = " by pattern" if stage.scales is not None else ""
    scale = f"λ = {stage.scale:g}{by_pattern}" if len(skills) == 1 else f"{len(skills)} skills, λ = {stage.scale:g}"
    return _injected(stages, skills, scale, stage.target != schema.BASE)


def _injected(
    stages: Mapping[str, PlannedStage], skills: Sequence[str], scale: str, knows: bool
) -> tuple[str, str, str]:
    """Return what `skills` make of a model that read the documents (`knows`) or of the base."""
    origins = {_skill_kind(stages, skill) for skill in skills}
    origin = origins.pop() if len(origins) == 1 else "skill"
    target = "SFT" if knows else "base"
    if origin == "random":
        return (
            "control",
            f"{target} + random vector",
            f"control: random direction, the skill's norm in each tensor, {scale}",
        )
    if origin == ANSWER_FORMAT:
        return (
            "control",
            f"{target} + answer format",
            f"control: a vector learnt from the form of answers alone, {scale}",
        )
    if not knows:
        return "control", "base + skill", f"control: the skill on the base, which never saw the documents, {scale}"
    elsewhere = "" if stages.keys() >= set(skills) else "; the cost of the skill, paid once elsewhere, is not in it"
    return "grafted", f"SFT + skill ({scale})", f"the SFT model with the skill vector injected{elsewhere}"


def _learnt_before(stages: Mapping[str, PlannedStage], start: str) -> tuple[str, str, str] | None:
    """Return what an SFT model is called whose start holds a skill, or was trained with RL, already."""
    while start in stages and stages[start].stage.kind == "sft":
        start = stages[start].stage.from_
    if start not in stages:
        return None
    if stages[start].stage.kind == "inject":
        role, label, _ = _role(stages, start)
        kind = label.removeprefix("SFT + ").removeprefix("base + ")
        return (
            "control" if kind != "skill" and role == "control" else "grafted",
            f"{kind}, then SFT",
            (f"fine-tuned on the documents after the stage {start} had injected the vector"),
        )
    return "other", f"RL ({start}), then SFT", f"fine-tuned on the documents on top of the RL model {start}"


def _skill_kind(stages: Mapping[str, PlannedStage], skill: str) -> str:
    if skill not in stages:
        manifest = json.loads((Path(skill) / "skill.json").read_text())
        return ANSWER_FORMAT if manifest.get("domain") == ANSWER_FORMAT else "skill"
    stage = stages[skill].stage
    if stage.kind == "random_vector":
        return "random"
    return ANSWER_FORMAT if stage.domain == ANSWER_FORMAT else "skill"


def _cost(stages: Mapping[str, PlannedStage], models: Sequence[str]) -> dict[str, float]:
    """Return seconds and FLOPs of every stage that led to `models`; what a skill from elsewhere cost is not in it."""
    seen: set[str] = set()
    waiting = list(models)
    while waiting:
        name = waiting.pop()
        if name in stages and name not in seen:
            seen.add(name)
            waiting += [reference for _, reference in schema.references(stages[name].stage)]
    records = [stages[name].record() for name in seen if stages[name].cached]
    return {
        "train_seconds": sum(record["seconds"] for record in records),
        "train_flops": sum(record["facts"].get("flops", 0.0) for record in records),
    }
