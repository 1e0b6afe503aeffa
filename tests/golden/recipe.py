"""Golden results of a run: a recipe with every kind of stage, its weights, what it wrote, its tables and its report."""

import json
import re

import yaml

from tests.golden import entry
from tests.golden.compare import digest, tensors_with_norms
from tests.golden.inputs import babbling, data

QUESTIONS = "data/questions.jsonl"
TRAINER = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 3e-3, "warmup_steps": 0}
RL_TRAINER = {
    "max_steps": 3,
    "per_device_train_batch_size": 8,
    "max_completion_length": 6,
    "learning_rate": 3e-3,
    "warmup_steps": 0,
}
REWARD = {entry.REWARD: 1.0, "f1": 2.0, "brevity": 0.1}
LORA = {"kind": "lora", "r": 2}
LOOSE = {"min_words": 1, "repetition": 1, "near_duplicate": 1, "support": 0}
STAGES = {
    "sft": {"kind": "sft", "from": "base", "documents": "data", "trainer": TRAINER},
    "chunked": {
        "kind": "sft",
        "from": "base",
        "documents": "data",
        "part": "2/2",
        "text": {"chunk_tokens": 24, "overlap_tokens": 4, "mask_title": True},
        "replay": {"text": "general.jsonl", "ratio": 0.5},
        "adapt": LORA,
        "trainer": TRAINER,
    },
    "asked": {"kind": "sft", "from": "sft", "questions": QUESTIONS, "about": "data", "trainer": TRAINER},
    "shuffled": {"kind": "sft", "from": "sft", "questions": QUESTIONS, "answers": "shuffled", "trainer": TRAINER},
    "rl": {
        "kind": "rl",
        "from": "sft",
        "questions": QUESTIONS,
        "reward": REWARD,
        "adapt": LORA,
        "trainer": RL_TRAINER,
    },
    "rl_rounds": {
        "kind": "rl",
        "from": "sft",
        "questions": QUESTIONS,
        "documents": "data",
        "limit_documents": 4,
        "algorithm": "rloo",
        "reward": {entry.REWARD: 1.0},
        "rounds": [1, 2],
        "trainer": {key: value for key, value in RL_TRAINER.items() if key != "max_steps"},
    },
    "rl_remax": {
        "kind": "rl",
        "from": "sft",
        "questions": QUESTIONS,
        "algorithm": "remax",
        "reward": {entry.REWARD: 1.0, "judge": 0.5},
        "judge": "base",
        "trainer": {**RL_TRAINER, "max_steps": 2},
    },
    "skill": {"kind": "extract", "rl": "rl", "sft": "sft", "domain": "harbours", "license": "Apache-2.0"},
    "skill_bf16": {"kind": "extract", "rl": "rl_rounds", "sft": "sft", "dtype": "bfloat16"},
    "random": {"kind": "random_vector", "skill": "skill"},
    "grafted": {"kind": "inject", "target": "asked", "skill": "skill", "scale": 1.5},
    "control": {"kind": "inject", "target": "asked", "skill": "random", "scale": 1.5},
    "negative": {"kind": "inject", "target": "rl", "skill": "skill", "scale": -1.0},
    "patterned": {
        "kind": "inject",
        "target": "asked",
        "skill": "skill_bf16",
        "scales": {"*.mlp.*": 2.0, "default": 0.5},
    },
    "both": {
        "kind": "inject",
        "target": "asked",
        "skills": [{"skill": "skill", "scale": 0.5}, {"skill": "skill_bf16"}],
        "method": "ties",
        "parameters": {"density": 0.6},
    },
    "refined": {
        "kind": "refine",
        "documents": "data",
        "questions": QUESTIONS,
        "rounds": 2,
        "scale": 0.5,
        "sft": {"trainer": TRAINER},
        "rl": {"trainer": {**RL_TRAINER, "max_steps": 2}, "reward": REWARD, "adapt": LORA},
    },
    "distilled": {
        "kind": "distill",
        "from": "sft",
        "documents": "data",
        "questions": QUESTIONS,
        "teacher_rate": 0.5,
        "skip_tokens": 1,
        "trainer": {**TRAINER, "max_steps": 2, "max_completion_length": 6},
    },
    "distilled_titles": {
        "kind": "distill",
        "from": "base",
        "documents": "data",
        "limit_documents": 3,
        "teacher": "start",
        "teacher_sees": "document",
        "adapt": LORA,
        "trainer": {**TRAINER, "max_steps": 2, "max_completion_length": 6},
    },
    "mixed": {
        "kind": "mix",
        "questions": "asked.jsonl",
        "documents": "data",
        "teacher_sees": "both",
        "attempts": 6,
        "temperature": 1.0,
        "max_new_tokens": 12,
    },
    "mixed_sft": {"kind": "sft", "from": "base", "questions": "mixed", "trainer": TRAINER},
    "written": {
        "kind": "synthesize",
        "documents": "data",
        "styles": ["implications", "summary", "questions"],
        "max_new_tokens": 40,
        "samples": 2,
        "filters": LOOSE,
        "held_out": ["more.jsonl"],
    },
    "imported": {
        "kind": "synthesize",
        "documents": "data",
        "given": "given.jsonl",
        "keep_original": False,
        "filters": {"min_words": 3, "near_duplicate": 1},
    },
    "learnt": {"kind": "sft", "from": "base", "documents": "written", "adapt": LORA, "trainer": TRAINER},
    "alone": {
        "kind": "single_passage",
        "documents": "imported",
        "limit_documents": 3,
        "questions": QUESTIONS,
        "skills": [
            {"skill": "skill", "scale": 2.0},
            {"skill": "skill", "row": "both"},
            {"skill": "skill_bf16", "row": "both"},
            {"skill": "random", "unread": True},
        ],
        "adapt": LORA,
        "trainer": TRAINER,
        "retention_passages": 1,
        "max_new_tokens": 6,
    },
    "edited": {
        "kind": "self_edit",
        "from": "base",
        "documents": "data",
        "limit_documents": 4,
        "questions": QUESTIONS,
        "samples": 3,
        "score": "f1",
        "max_new_tokens": 24,
        "max_answer_tokens": 8,
        "learn": {"adapt": LORA, "trainer": {**TRAINER, "learning_rate": 5e-2}},
        "trainer": {**TRAINER, "max_steps": 2},
    },
    "scores": {
        "kind": "eval",
        "models": [
            "base",
            "sft",
            "asked",
            "grafted",
            "control",
            "patterned",
            "both",
            "distilled",
            "mixed_sft",
            "learnt",
            "edited",
        ],
        "rows": [
            {"model": "base", "context": "gold"},
            {"model": "base", "context": "bm25", "top_k": 2, "chunk_tokens": 48, "overlap_tokens": 8},
            {"model": "sft", "shots": 2, "shots_from": "more.jsonl", "label": "two examples"},
        ],
        "questions": QUESTIONS,
        "documents": "data",
        "baseline": "asked",
        "labels": {"mixed_sft": "mixed"},
        "max_new_tokens": 8,
        "retention": {"tasks": ["general"], "limit": 6, "text": "general.jsonl", "window": 64, "stride": 32},
    },
    "few": {
        "kind": "eval",
        "models": ["sft", "rl", "negative"],
        "questions": QUESTIONS,
        "documents": "data",
        "part": "1/2",
        "max_new_tokens": 8,
        "retention": False,
    },
}
"""Every kind of stage, most of them with settings that are not the defaults."""

UNSTEADY = {
    "seconds",
    "train_seconds",
    "eval_seconds",
    "precision",
    "size_bytes",
    "directory",
    "key",
    "cached",
    "fingerprint",
    "source",
    "settings",
    "base",
    "data",
    "threads",
}
"""What depends on time, place, or the code's own version."""
ADDRESS = re.compile(r"(blake3:|\w+-)?\b[0-9a-f]{16,}\b|(?<!\S)/\S+")
"""A stage's address, a fingerprint, an absolute path."""


def steady(value):
    """Return what is the same in every run of the same code: numbers and words, without places and addresses."""
    if isinstance(value, dict):
        return {key: steady(each) for key, each in value.items() if key not in UNSTEADY}
    if isinstance(value, list):
        return [steady(each) for each in value]
    return ADDRESS.sub("#", value) if isinstance(value, str) else value


def write_recipe(folder, name, stages):
    """Write a recipe with its model and data into `folder` and return its file."""
    babbling(folder / "base")
    data(folder)
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump({"name": name, "base": "./base", "stages": stages}, sort_keys=False))
    return file


def made_by(stage):
    """Return what a finished stage holds: facts, weights, hashes of the records that it wrote."""
    records = {file.name: digest(file.read_bytes()) for file in sorted(stage.glob("*.jsonl"))}
    return {"facts": steady(entry.facts(stage)), "tensors": tensors_with_norms(stage), "records": records}


def results(folder):
    """All golden results of the run."""
    with entry.one_thread():
        result = entry.run(write_recipe(folder, "frozen", STAGES), runs=folder / "runs")
    report = json.loads((result.directory / entry.REPORT).read_text())
    return {
        "stages": {name: made_by(stage) for name, stage in result.stages.items()},
        "tables": steady(result.evaluations),
        "report": {part: steady(report[part]) for part in ("training", "skills", "sweeps", "geometry")},
    }
