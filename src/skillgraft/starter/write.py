"""Text of a first recipe, with a comment on every stage."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from skillgraft.checkpoint.default_model import DEFAULT_BASE
from skillgraft.settings.base import is_local
from skillgraft.skills.names import ANSWER_FORMAT, RECALL
from skillgraft.starter.inputs import QUESTIONS, Cost, Start
from skillgraft.support.units import duration

GENERIC = {"", "documents", "docs", "data", "target", "source", "text", "texts", "train", "stages"}
"""Names of folders that say nothing (`stages` is a folder of runs): the folder above gives the recipe its name."""
BATCH, LEAST_STEPS = 4, 40
"""Documents a step; steps below which fine-tuning ends before its learning rate has warmed up and come down."""
FEW_DOCUMENTS = 100
"""Below, eight epochs instead of five, as in the shipped recipes."""
SMALL = 500_000_000
"""Parameters up to which the learning rates that were measured (on 135 M) are taken."""


def recipe_text(start: Start, out: Path, cost: Cost | None = None) -> str:
    """Return the recipe for the file `out`, relative to whose folder its paths are."""
    folder = out.resolve().parent
    skill = RECALL if start.source is None and start.base.fits_shipped else "skill" if start.source else None
    documents = _path(start.documents.path, folder)
    head = [
        f"# {_comment(recipe_name(start.documents.path))}: {_what(start, skill)}.",
        "#",
        f"#   skillgraft run {_comment(shell_path(out))} --dry-run      the plan; nothing runs",
        f"#   skillgraft run {_comment(shell_path(out))}",
        "#",
        f"# {_cost(cost)}",
        f"name: {_flow(recipe_name(start.documents.path))}",
        f"base: {_flow(_base(start.base.name, folder))}",
        "seed: 0",
        "stages:",
    ]
    body = [*_learn(start, documents), *_skill_stages(start, skill, folder), *_measure(start, skill, documents, folder)]
    return "\n".join([*head, *(f"  {line}" if line else "" for line in body)]) + "\n"


def recipe_name(documents: Path) -> str:
    """Return a name for the recipe from that of the documents."""
    parts = [documents.resolve().with_suffix("").name if documents.is_file() else documents.resolve().name]
    parts.append(documents.resolve().parent.name)
    for part in parts:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._").lower()
        if name not in GENERIC:
            return name
    return "mine"


def _what(start: Start, skill: str | None) -> str:
    count = start.documents.count
    learnt = f"{count} document{'s' * (count != 1)} learnt by fine-tuning"
    grafted = {None: "", RECALL: ", the shipped skill grafted on", "skill": ", a skill learnt and grafted on"}[skill]
    return f"{learnt}{grafted}{', all of it measured' if start.questions else ''}"


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return "The cost is known once the base is on this machine: --dry-run shows it."
    memory, disk = (f"{size / 2**30:.1f} GiB" for size in (cost.memory, cost.disk))
    return f"On the machine that it was written on: about {duration(cost.seconds)}, {memory} of memory, {disk} of disk."


def _learn(start: Start, documents: str) -> list[str]:
    if start.lora:
        known = start.base.parameters is not None
        why = "training every weight would not fit the memory" if known else "the base's size is not known yet"
        first = [f"# Learn the documents with LoRA: {why}."]
    else:
        first = ["# Learn the documents; every weight is trained, since this machine's memory allows it."]
    if (start.base.parameters or SMALL + 1) > SMALL or start.lora:
        first.append("# The learning rate is a guess for a base of this size: look at the loss.")
    return [*first, *_sft("sft", start, documents)]


def _sft(name: str, start: Start, documents: str) -> list[str]:
    count = start.documents.count
    epochs = max(8 if count < FEW_DOCUMENTS else 5, math.ceil(LEAST_STEPS / math.ceil(count / BATCH)))
    small = (start.base.parameters or SMALL + 1) <= SMALL
    rate = {(True, False): "3.0e-4", (False, False): "2.0e-5", (True, True): "1.0e-3", (False, True): "2.0e-4"}
    return [
        f"{name}:",
        "  kind: sft",
        "  from: base",
        f"  documents: {documents}",
        *(["  adapt: {kind: lora, r: 16, lora_alpha: 32}"] if start.lora else []),
        f"  trainer: {{num_train_epochs: {epochs}, learning_rate: {rate[small, start.lora]}, "
        f"per_device_train_batch_size: {BATCH}}}",
    ]


def _skill_stages(start: Start, skill: str | None, folder: Path) -> list[str]:
    if skill is None:
        return [
            "",
            f"# No skill: the shipped one fits {DEFAULT_BASE} alone. To learn one for this base, on other documents",
            "# with questions: skillgraft init … --source FOLDER",
        ]
    if skill == RECALL:
        return [
            "",
            "# Add what reinforcement learning taught on other documents; scale is λ.",
            f"grafted: {{kind: inject, target: sft, skill: {RECALL}, scale: 1.0}}",
        ]
    assert start.source is not None
    return [
        "",
        "# Learn a skill on other documents: fine-tune, then reinforce right answers; the difference is the skill.",
        *_sft("sft_source", start, _path(start.source, folder)),
        "rl_source:",
        "  kind: rl",
        "  from: sft_source",
        f"  questions: {_path(start.source / QUESTIONS, folder)}",
        "  adapt: {kind: lora, r: 8, lora_alpha: 16}",
        "  reward: {containment: 0.8, f1: 0.2, brevity: 0.2}",
        "  trainer: {max_steps: 140, learning_rate: 4.0e-4, max_completion_length: 24, temperature: 0.8}",
        "skill: {kind: extract, rl: rl_source, sft: sft_source}",
        "# Add it; scale is λ.",
        "grafted: {kind: inject, target: sft, skill: skill, scale: 1.0}",
    ]


def _measure(start: Start, skill: str | None, documents: str, folder: Path) -> list[str]:
    models = ["base", "sft", *(["grafted"] if skill else [])]
    if start.questions is None:
        example = json.dumps({"document": start.documents.first_id, "question": "Who ...?", "answers": ["..."]})
        where = start.documents.path if start.documents.path.is_dir() else start.documents.path.parent
        return [
            "",
            f"# To measure it, write {QUESTIONS} with a line for each question, such as",
            f"#   {_comment(example)}",
            "# and take away the # before:",
            f"# scores: {{kind: eval, models: [{', '.join(models)}], documents: {_comment(documents)}, "
            f"questions: {_comment(_path(where / QUESTIONS, folder))}}}",
        ]
    controls = []
    if skill:
        controls = ["base_skill", *(["with_format"] if skill == RECALL else []), "with_random"]
    return [
        *(_controls(skill) if skill else []),
        "",
        "# Ask all of them the questions, without the documents.",
        "scores:",
        "  kind: eval",
        f"  models: [{', '.join([*models, *controls])}]",
        f"  documents: {documents}",
        f"  questions: {_path(start.questions, folder)}",
    ]


def _controls(skill: str) -> list[str]:
    form = f"with_format: {{kind: inject, target: sft, skill: {ANSWER_FORMAT}, scale: 1.0}}"
    return [
        "# Controls that tell a skill from a habit: without the documents, the form of answers alone, chance."
        if skill == RECALL
        else "# Controls that tell a skill from a habit: without the documents, and chance.",
        f"base_skill: {{kind: inject, target: base, skill: {skill}, scale: 1.0}}",
        *([form] if skill == RECALL else []),
        f"random: {{kind: random_vector, skill: {skill}}}",
        "with_random: {kind: inject, target: sft, skill: random, scale: 1.0}",
    ]


def _base(base: str, folder: Path) -> str:
    if not is_local(base):
        return base
    relative = _relative(Path(base).expanduser(), folder)
    return relative if relative.startswith((".", "/")) else f"./{relative}"


def _path(path: Path, folder: Path) -> str:
    return _flow(_relative(path, folder))


def _relative(path: Path, folder: Path) -> str:
    """Return `path` as the recipe names it: relative where that goes up two folders at most, else absolute."""
    relative = os.path.relpath(path.resolve(), folder)
    return str(path.resolve()) if relative.startswith(os.path.join(*[os.pardir] * 3)) else relative


def _flow(value: Any) -> str:
    """Return a value as YAML that may stand inside braces."""
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf"), allow_unicode=False).strip()[1:-1]


def _comment(text: str) -> str:
    """Return text on one line, without what YAML allows in no file."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def shell_path(path: Path) -> str:
    """Return a path for a command line: relative where it lies under the current folder."""
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
