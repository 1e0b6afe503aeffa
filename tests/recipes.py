"""A whole tiny recipe: base, documents, questions and the YAML, made in a directory."""

import json
from pathlib import Path

import yaml

from tests.tiny import tiny_checkpoint

PLACES = ["Vell", "Orm", "Tarn", "Issk"]


def write_jsonl(file, records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def tiny_recipe(directory, *, sft_steps=6, rl_steps=3, **stages):
    """Write everything into `directory` and return the recipe's path; `stages` adds to or replaces the stages."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "base").exists():
        tiny_checkpoint(directory / "base")
    data = directory / "data"
    data.mkdir(exist_ok=True)
    write_jsonl(
        data / "documents.jsonl",
        [{"id": p, "title": p, "text": f"The harbour of {p} was built in {1900 + i}."} for i, p in enumerate(PLACES)],
    )
    write_jsonl(
        data / "questions.jsonl",
        [
            {"document": p, "question": f"When was {p}'s harbour built?", "answers": [str(1900 + i)]}
            for i, p in enumerate(PLACES)
        ],
    )
    sft_trainer = {"max_steps": sft_steps, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 0}
    rl_trainer = {
        "max_steps": rl_steps,
        "per_device_train_batch_size": 8,
        "max_completion_length": 6,
        "warmup_steps": 0,
    }
    recipe = {
        "name": "tiny",
        "base": "./base",
        "stages": {
            "sft": {"kind": "sft", "from": "base", "documents": "data", "trainer": sft_trainer},
            "rl": {
                "kind": "rl",
                "from": "sft",
                "questions": "data/questions.jsonl",
                "reward": {"tests.domains.own_reward.vowels": 1.0},
                "adapt": {"kind": "lora", "r": 2},
                "trainer": rl_trainer,
            },
            "skill": {"kind": "extract", "rl": "rl", "sft": "sft"},
            "random": {"kind": "random_vector", "skill": "skill"},
            "grafted": {"kind": "inject", "target": "sft", "skill": "skill", "scale": 1.0},
            "control": {"kind": "inject", "target": "sft", "skill": "random", "scale": 1.0},
            "scores": {
                "kind": "eval",
                "models": ["base", "sft", "grafted", "control"],
                "questions": "data/questions.jsonl",
                "documents": "data",
                "max_new_tokens": 4,
                "retention": False,
            },
            **stages,
        },
    }
    file = directory / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return file
