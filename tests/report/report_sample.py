"""Facts as a real run gives them: seven rows with three controls, forty examples, an RL curve of 200 points."""

from __future__ import annotations

import math
import random
from typing import Any

LABELS = {
    "base": ("Base", "base", "The pre-trained model, which never saw the documents."),
    "sft_target": ("SFT", "sft", "Fine-tuned on the new documents and nothing else."),
    "grafted": ("SFT + skill (λ = 1)", "grafted", "The SFT model plus the skill vector learnt on other documents."),
    "rl_target": ("RL on the target", "other", "The expensive way: RL run on the new documents themselves."),
    "skill_on_base": ("Base + skill", "control", "The skill on a model that never saw the documents."),
    "format_vector": ("SFT + format vector", "control", "A vector from SFT on the answer format alone."),
    "random_vector": ("SFT + random vector", "control", "A random vector with the same norm in every tensor."),
}
MEANS = {  # f1, containment, exact match, retention, words
    "base": (0.084, 0.061, 0.012, 0.621, 21.4),
    "sft_target": (0.246, 0.278, 0.110, 0.598, 14.2),
    "grafted": (0.352, 0.331, 0.222, 0.594, 5.1),
    "rl_target": (0.381, 0.347, 0.251, 0.580, 4.6),
    "skill_on_base": (0.131, 0.079, 0.041, 0.615, 6.0),
    "format_vector": (0.291, 0.270, 0.171, 0.601, 4.9),
    "random_vector": (0.241, 0.274, 0.108, 0.597, 14.5),
}
QUESTIONS = [
    ("Normandy", "In what country is Normandy located?", "France", "Normandy lies in the north of France"),
    ("Computational complexity theory", "What is a unit of measure of time complexity?", "elementary steps", "bits"),
    ("Southern California", "How many counties make up Southern California?", "10", "The region has ten counties: 10"),
    ("Steam engine", "What was the first commercially successful engine for?", "pumping water", "driving trains"),
    ("Oxygen", "Which gas makes up 20.8% of the atmosphere?", "diatomic oxygen", "Diatomic oxygen gas"),
]


def interval(mean: float, half: float = 0.03, n: int = 500) -> dict[str, Any]:
    return {"mean": mean, "low": max(0.0, round(mean - half, 4)), "high": round(mean + half, 4), "n": n}


def row(model: str) -> dict[str, Any]:
    label, role, note = LABELS[model]
    f1, containment, exact, retention, words = MEANS[model]
    costs = {"sft_target": (412.0, 3.1e15), "grafted": (415.0, 3.1e15), "rl_target": (6120.0, 4.9e16)}
    seconds, flops = costs.get(model, (0.0, 0.0))
    return {
        "model": model,
        "label": label,
        "role": role,
        "note": note,
        "scores": {
            "exact_match": interval(exact, 0.021),
            "f1": interval(f1, 0.029),
            "containment": interval(containment, 0.037),
        },
        "retention": interval(retention, 0.034, 800),
        "answer_words": words,
        "seconds": 61.0,
        "cost": {"train_seconds": seconds, "train_flops": flops, "eval_seconds": 61.0},
    }


def comparison(metric: str, one: str, other: str, difference: float, half: float) -> dict[str, Any]:
    return {
        "metric": metric,
        "row": LABELS[one][0],
        "against": LABELS[other][0],
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
    }


def example(at: int) -> dict[str, Any]:
    title, question, gold, other = QUESTIONS[at % len(QUESTIONS)]
    draw = random.Random(at)
    answers = []
    for model, (label, _, _) in LABELS.items():
        right = draw.random() < MEANS[model][1] + 0.2
        wordy = f"{gold}, as far as the text says, although it depends on what the question means exactly."
        text = (wordy if MEANS[model][4] > 10 else gold) if right else other
        scores = {"exact_match": float(text == gold), "f1": 1.0 if text == gold else 0.286 * right}
        answers.append({"model": label, "text": text, **scores, "containment": float(right)})
    document = f"target/{title.lower().replace(' ', '-')}-{at:03d}"
    return {"document": document, "title": title, "question": question, "gold": [gold], "answers": answers}


def rl_curve(points: int = 200) -> list[dict[str, float]]:
    draw = random.Random(0)
    curve = []
    for step in range(1, points + 1):
        rise = 1 - math.exp(-step / 60)
        curve.append(
            {
                "step": step,
                "reward": round(0.18 + 0.24 * rise + draw.gauss(0, 0.04), 4),
                "share_without_variance": round(min(1, max(0, 0.62 - 0.2 * rise + draw.gauss(0, 0.06))), 4),
                "completion_words": round(19 - 13 * rise + draw.gauss(0, 0.7), 2),
            }
        )
    return curve


def evaluation() -> dict[str, Any]:
    return {
        "stage": "scores",
        "questions": 500,
        "documents": 120,
        "rows": [row(model) for model in LABELS],
        "comparisons": [
            comparison("f1", "grafted", "sft_target", 0.106, 0.031),
            comparison("f1", "grafted", "format_vector", 0.061, 0.029),
            comparison("f1", "grafted", "rl_target", -0.029, 0.026),
            comparison("containment", "grafted", "sft_target", 0.053, 0.034),
            comparison("containment", "grafted", "random_vector", 0.057, 0.036),
            comparison("containment", "grafted", "rl_target", -0.016, 0.033),
            {**comparison("retention", "grafted", "base", -0.027, 0.031), "kept": True},
        ],
        "examples": [example(at) for at in range(40)],
    }


def geometry(layers: int = 4) -> dict[str, Any]:
    def vector(strength: float) -> dict[str, float]:
        return {"norm": strength, "relative_norm": strength / 100, "effective_rank": 8 * strength}

    names = [("SFT", "sft_target"), ("RL", "rl_source"), ("skill", "skill")]
    pairs = [("SFT", "RL"), ("SFT", "skill"), ("RL", "skill")]
    return {
        "keys": ["00001eef"],
        "ranks": True,
        "vectors": [{"label": label, "stage": stage, **vector(1.5), "zeros": 0.125} for label, stage in names],
        "pairs": [
            {"one": one, "other": other, "cosine": 0.01, "z": 1.5, "same_sign": 0.5, "sentence": f"{one} with {other}"}
            for one, other in pairs
        ],
        "cells": [
            {
                "layer": layer,
                "kind": kind,
                "vectors": [vector(1 + layer)] * 3,
                "pairs": [{"cosine": 0.01 * (layer - 1)}] * 3,
            }
            for layer in range(layers)
            for kind in ("q", "down")
        ],
        "missing": "",
    }


def swept() -> dict[str, Any]:
    """Facts with the skill at four scales and the target without it."""
    made = facts()
    rows = made["evaluations"][0]["rows"]
    points = [{"scale": 0.0, "row": "SFT"}, {"scale": 1.0, "row": "SFT + skill (λ = 1)"}]
    for scale, f1 in ((0.25, 0.28), (0.5, 0.31), (1.5, 0.3)):
        label = f"SFT + skill (λ = {scale})"
        rows.append({**row("grafted"), "model": f"grafted{scale}", "label": label, "scores": {"f1": interval(f1)}})
        points.append({"scale": scale, "row": label})
    points.sort(key=lambda point: point["scale"])
    made["sweeps"] = [{"evaluation": "scores", "target": "sft_target", "skill": "skill", "points": points}]
    made["geometry"] = geometry()
    return made


def facts() -> dict[str, Any]:
    sft_curve = [{"step": step, "loss": 2.9 * math.exp(-step / 40) + 1.1, "learning_rate": 2e-5} for step in range(60)]
    stages = [
        ("sft_source", "sft", 398.0, True),
        ("rl_source", "rl", 5980.0, True),
        ("skill", "extract", 3.2, True),
        ("sft_target", "sft", 412.0, False),
        ("rl_target", "rl", 5708.0, False),
        ("grafted", "inject", 2.9, False),
        ("scores", "eval", 431.0, False),
    ]
    skill = {"stage": "skill", "form": "lowrank", "rank": 32, "size_bytes": 9_800_000, "norm": 1.8342}
    return {
        "title": "Skill transfer on SQuAD documents, SmolLM2-135M-Instruct",
        "created": "2025-11-20T05:38:00+00:00",
        "skillgraft_version": "0.1.0",
        "recipe_path": "recipes/past-squad.yaml",
        "recipe_yaml": "name: past-squad\nbase: HuggingFaceTB/SmolLM2-135M-Instruct\nseed: 0\nstages:\n"
        + "".join(f"  {name}:\n    kind: {kind}\n    trainer:\n      seed: 0\n" for name, kind, _, _ in stages),
        "base": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "fingerprint": "blake3:2e2ef84f"},
        "command": "skillgraft run recipes/past-squad.yaml --output runs/past-squad",
        "machine": {
            "cpu": "AMD EPYC 9654",
            "cores": 16,
            "memory_gib": 128.0,
            "device": "NVIDIA H200",
            "precision": "bf16",
        },
        "versions": {
            "python": "3.11.4",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "trl": "1.16.0",
            "peft": "0.21.2",
        },
        "evaluations": [evaluation()],
        "training": [
            {
                "stage": "sft_target",
                "kind": "sft",
                "seconds": 412.0,
                "tokens": 1_843_200,
                "curve": sft_curve,
                "headline": ["loss"],
            },
            {
                "stage": "rl_source",
                "kind": "rl",
                "seconds": 5980.0,
                "tokens": None,
                "curve": rl_curve(),
                "headline": ["reward", "share_without_variance", "completion_words"],
            },
        ],
        "stages": [
            {
                "name": name,
                "kind": kind,
                "seconds": seconds,
                "cached": cached,
                "key": f"{7919 * (at + 1):08x}",
                "directory": f"runs/past-squad/{name}-{7919 * (at + 1):08x}",
            }
            for at, (name, kind, seconds, cached) in enumerate(stages)
        ],
        "skills": [
            {**skill, "scale": None, "survived_rounding": None, "base": "SmolLM2-135M-Instruct", "domain": "knowledge"},
            {
                **skill,
                "stage": "grafted",
                "scale": 1.0,
                "survived_rounding": 0.9712,
                "base": "SmolLM2-135M-Instruct",
                "domain": None,
            },
        ],
    }
