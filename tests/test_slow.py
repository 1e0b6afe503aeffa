"""Opt-in (`make test-slow`): a small whole recipe on the real default model, and the quickstart's skill on it."""

import json
from pathlib import Path

import pytest
import yaml

from skillgraft import inject, load_skill, run

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def test_a_whole_recipe_on_the_default_model(tmp_path, monkeypatch):
    monkeypatch.delenv("SKILLGRAFT_PRECISION", raising=False)
    almanac = str(ROOT / "examples" / "almanac" / "target")
    trainer = {"num_train_epochs": 5, "learning_rate": 3e-4, "per_device_train_batch_size": 4}
    recipe = {
        "name": "slow",
        "base": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "stages": {
            "sft": {"kind": "sft", "from": "base", "documents": almanac, "limit_documents": 6, "trainer": trainer},
            "rl": {
                "kind": "rl",
                "from": "sft",
                "questions": f"{almanac}/questions.jsonl",
                "reward": {"containment": 1.0, "tests.domains.own_reward.vowels": 0.01},
                "adapt": {"kind": "lora", "r": 4},
                "trainer": {
                    "warmup_steps": 0,
                    "max_steps": 2,
                    "per_device_train_batch_size": 16,
                    "max_completion_length": 12,
                },
            },
            "skill": {"kind": "extract", "rl": "rl", "sft": "sft"},
            "grafted": {"kind": "inject", "target": "sft", "skill": "skill"},
            "scores": {
                "kind": "eval",
                "models": ["base", "sft", "grafted"],
                "questions": f"{almanac}/questions.jsonl",
                "documents": almanac,
                "limit_documents": 6,
            },
        },
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    result = run(file, runs=tmp_path / "runs")
    loss = [point["loss"] for point in json.loads((result.stages["sft"] / "stage.json").read_text())["facts"]["curve"]]
    assert loss[-1] < 0.7 * loss[0]
    assert load_skill(result.stages["skill"]).form == "lowrank"
    rows = {row["model"]: row for row in result.evaluations[0]["rows"]}
    assert rows["base"]["retention"]["mean"] > 0.4  # chance is 0.25: the default model and the likelihoods work
    assert rows["sft"]["scores"]["containment"]["mean"] >= rows["base"]["scores"]["containment"]["mean"]
    assert run(file, runs=tmp_path / "runs").cached


def test_the_quickstart_validates_against_the_default_model(tmp_path):
    from skillgraft.run import prepare

    _, base, stages = prepare(ROOT / "recipes" / "quickstart.yaml", (), tmp_path / "runs", print)
    assert (base / "model.safetensors").exists()
    assert {stage.kind.name for stage in stages} >= {"sft", "inject", "eval"}


def test_the_shipped_skill_as_an_adapter_gives_the_injected_logits(tmp_path):
    """In fp32; the logits of this model reach 30, and the sums run in another order."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from skillgraft.checkpoint.default_model import resolve_base
    from skillgraft.skills.to_peft import convert_to_peft

    base, skill = resolve_base("HuggingFaceTB/SmolLM2-135M-Instruct"), ROOT / "skills" / "squad-recall"
    assert convert_to_peft(skill, tmp_path / "adapter")["exact"]
    inject(base, skill, tmp_path / "grafted", dtype="float32")
    tokens = AutoTokenizer.from_pretrained(base)("Who built the lighthouse, and when?", return_tensors="pt")

    def logits(model):
        with torch.no_grad():
            return model.eval()(**tokens).logits

    def target():
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "grafted", dtype=torch.float32))
    assert (logits(target()) - expected).abs().max() > 0.1
    assert (logits(PeftModel.from_pretrained(target(), tmp_path / "adapter")) - expected).abs().max() < 1e-3
    loaded = target()
    loaded.load_adapter(str(tmp_path / "adapter"))
    assert (logits(loaded) - expected).abs().max() < 1e-3


def test_what_init_writes_runs_unedited_on_the_default_model(tmp_path, monkeypatch):
    from skillgraft.starter import write_recipe

    monkeypatch.delenv("SKILLGRAFT_PRECISION", raising=False)
    folder = tmp_path / "almanac"
    folder.mkdir()
    documents = (ROOT / "examples/almanac/target/documents.jsonl").read_text().splitlines()[:6]
    (folder / "documents.jsonl").write_text("\n".join(documents))
    kept = {json.loads(line)["id"] for line in documents}
    questions = (ROOT / "examples/almanac/target/questions.jsonl").read_text().splitlines()
    (folder / "questions.jsonl").write_text("\n".join(q for q in questions if json.loads(q)["document"] in kept))
    started = write_recipe(folder, base="HuggingFaceTB/SmolLM2-135M-Instruct", out=tmp_path / "recipe.yaml")
    assert started.start.documents.counted
    result = run(started.recipe, runs=tmp_path / "runs")
    rows = {row["model"]: row for row in result.evaluations[0]["rows"]}
    assert list(rows) == ["base", "sft", "grafted", "base_skill", "with_format", "with_random"]
    assert rows["sft"]["scores"]["f1"]["mean"] > rows["base"]["scores"]["f1"]["mean"]


TWO_STEPS = {"max_steps": 2, "warmup_steps": 0, "per_device_train_batch_size": 16, "max_completion_length": 8}


@pytest.mark.parametrize("algorithm", ["rloo", "remax"])
def test_the_algorithms_on_the_default_model(tmp_path, algorithm):
    almanac = str(ROOT / "examples/almanac/source")
    rl = {"kind": "rl", "from": "base", "algorithm": algorithm, "questions": f"{almanac}/questions.jsonl"}
    rl |= {"reward": {"tests.domains.own_reward.vowels": 0.1}, "adapt": {"kind": "lora", "r": 4}, "trainer": TWO_STEPS}
    file = tmp_path / "recipe.yaml"
    file.write_text(
        yaml.safe_dump({"name": "slow", "base": "HuggingFaceTB/SmolLM2-135M-Instruct", "stages": {"rl": rl}})
    )
    record = json.loads((run(file, runs=tmp_path / "runs").stages["rl"] / "stage.json").read_text())
    assert [point["step"] for point in record["facts"]["curve"]] == [1, 2]
    assert all(point["reward"] > 0 for point in record["facts"]["curve"])
