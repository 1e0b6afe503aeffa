"""Opt-in (`make test-slow`): the recipes of refinement and its ablations, small, on the default model."""

import json
from pathlib import Path

import pytest
import yaml

from skillgraft import load_skill, run

ROOT = Path(__file__).parents[1]
SMALL = {"max_steps": 1, "warmup_steps": 0, "per_device_train_batch_size": 16, "max_completion_length": 8}

pytestmark = pytest.mark.slow


def small(tmp_path, name):
    """Write the shipped recipe over few documents of the almanac, one epoch of SFT and one step of RL."""
    recipe = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())
    where = {"source": ROOT / "examples/almanac/source", "choice": ROOT / "examples/almanac/target"}
    where["report"] = where["choice"]
    for stage in recipe["stages"].values():
        for key in ("documents", "questions"):
            if key in stage:
                folder = next(folder for part, folder in where.items() if f"/{part}" in stage[key])
                stage[key] = str(folder / f"{key}.jsonl")
                stage["limit_documents"] = 4
        trained = [(stage, stage["kind"]), (stage.get("sft", {}), "sft"), (stage.get("rl", {}), "rl")]
        for settings, kind in trained:
            if kind == "sft" and "trainer" in settings:
                settings["trainer"] = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "warmup_steps": 0}
            if kind == "rl" and "trainer" in settings:
                settings |= {"trainer": SMALL, "pass_rate_samples": 0}
        if stage["kind"] == "eval":
            stage |= {"retention": False, "max_new_tokens": 8}
    file = tmp_path / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return file


@pytest.mark.parametrize("name", ["past-refine", "ablation-where", "ablation-target-rl"])
def test_the_recipe_runs(tmp_path, name):
    result = run(small(tmp_path, name), runs=tmp_path / "runs")
    rows = {row["model"] for row in result.evaluations[0]["rows"]}
    assert rows == set(yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text())["stages"]["scores"]["models"])
    if name == "past-refine":
        assert result.stages["past50x2"] != result.stages["past100"]
        assert load_skill(result.stages["past50x2"]).form == "dense"


@pytest.mark.parametrize("algorithm", ["rloo", "remax"])
def test_the_algorithms_on_the_default_model(tmp_path, algorithm):
    almanac = str(ROOT / "examples/almanac/source")
    rl = {"kind": "rl", "from": "base", "algorithm": algorithm, "questions": f"{almanac}/questions.jsonl"}
    rl |= {"reward": {"tests.domains.own_reward.vowels": 0.1}, "lora": {"r": 4}, "trainer": {**SMALL, "max_steps": 2}}
    file = tmp_path / "recipe.yaml"
    file.write_text(
        yaml.safe_dump({"name": "slow", "base": "HuggingFaceTB/SmolLM2-135M-Instruct", "stages": {"rl": rl}})
    )
    record = json.loads((run(file, runs=tmp_path / "runs").stages["rl"] / "stage.json").read_text())
    assert [point["step"] for point in record["facts"]["curve"]] == [1, 2]
    assert all(point["reward"] > 0 for point in record["facts"]["curve"])
