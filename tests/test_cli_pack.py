import json

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from skillgraft.arithmetic import extract
from skillgraft.cli import app
from skillgraft.skills import load_skill
from skillgraft.skills.packing.gain import kept_share
from tests.tiny import tiny_checkpoint, tiny_finetune

runner = CliRunner()
QUESTIONS = [
    {"document": f"d{number % 3}", "question": f"who built the harbour {number}", "answers": ["the lighthouse"]}
    for number in range(6)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    tiny_checkpoint(folder / "base")
    tiny_finetune(folder / "base", folder / "sft", seed=1)
    tiny_finetune(folder / "base", folder / "target", seed=2)
    extract(tiny_finetune(folder / "sft", folder / "rl", seed=3, size=1e-2), folder / "sft", folder / "skill")
    (folder / "q.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return folder


def pack(folder, tmp_path, *options):
    return runner.invoke(app, ["pack", str(folder / "skill"), "-o", str(tmp_path / "out"), *map(str, options)])


def test_a_table_of_errors(folder, tmp_path):
    result = pack(folder, tmp_path, "--form", "lowrank", "--rank", "4")
    assert result.exit_code == 0, result.output
    assert "out: lowrank, 20 tensors" in result.output
    for kind in ("attention", "mlp", "embedding", "norm", "whole"):
        assert kind in result.output
    assert load_skill(tmp_path / "out").form == "lowrank"


def test_json(folder, tmp_path):
    result = pack(folder, tmp_path, "--form", "packed", "--budget", "60KB", "--json")
    facts = json.loads(result.stdout)
    assert facts["size_bytes"] <= 60_000
    assert facts["reconstruction_error"] == load_skill(tmp_path / "out").manifest.reconstruction_error


def test_what_is_kept_of_the_gain(folder, tmp_path):
    options = ["--form", "sparse", "--questions", folder / "q.jsonl", "--target", folder / "target"]
    facts = json.loads(pack(folder, tmp_path, *options, "--json").stdout)
    gain = facts["gain"]
    assert gain["questions"] == 6
    assert gain["scores"]["packed"] == gain["scores"]["original"]  # lossless: the same answers
    assert gain["scores"].keys() == {"target", "original", "packed"}
    assert set(gain["kept"]) == {"f1", "containment", "exact_match"}


def test_an_optimised_mask(folder, tmp_path):
    options = ["--form", "mask", "--density", "0.01", "--localise-on", folder / "q.jsonl"]
    facts = json.loads(pack(folder, tmp_path, *options, "--target", folder / "target", "--steps", 1, "--json").stdout)
    assert facts["settings"]["steps"] == 1
    assert "gain" not in facts
    other = tiny_checkpoint(tmp_path / "other", hidden_size=64)
    result = pack(folder, tmp_path / "again", *options, "--target", other)
    assert result.exit_code == 2
    assert "has shape" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--form", "lowrank"], "got nothing to say how much is kept"),
        (["--form", "sparce"], "did you mean 'sparse'"),
        (["--form", "lowrank", "--budget", "big"], "budget 'big' is no size"),
        (["--form", "sparse", "--questions", "q.jsonl"], "--target belongs to --questions or --localise-on"),
        (["--form", "mask", "--density", "0.1", "--localise-on", "q.jsonl"], "--target belongs to"),
        (
            ["--form", "mask", "--density", "0.1", "--localise-on", "q", "--questions", "q", "--target", "x"],
            "--questions and --localise-on are both q",
        ),
        (["--form", "sparse", "--questions", "nowhere.jsonl", "--target", "x"], "nowhere.jsonl does not exist"),
    ],
)
def test_mistakes_are_one_message(folder, tmp_path, options, message):
    result = pack(folder, tmp_path, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_no_skill(folder, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": str(folder / "base")})
    )
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {f"{prefix}.lora_A.weight": torch.ones(1, 32), f"{prefix}.lora_B.weight": torch.ones(64, 1)}
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    command = ["pack", str(tmp_path / "adapter"), "-o", str(tmp_path / "out"), "--form", "sparse"]
    result = runner.invoke(app, command)
    assert result.exit_code == 2
    assert "is a PEFT adapter; expected a skill: skillgraft extract --rl" in " ".join(result.output.split())


def test_a_target_of_another_base_is_refused_before_packing(folder, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=9)
    options = ["--form", "sparse", "--questions", folder / "q.jsonl", "--target", other]
    result = pack(folder, tmp_path, *options)
    assert result.exit_code == 2
    assert "looks like another base" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_shares_of_a_gain_by_hand():
    clusters = [str(number // 2) for number in range(40)]
    target, original = [0.0] * 40, [1.0, 0.0] * 20
    assert kept_share(target, original, original, clusters) == {"share": 1.0, "low": 1.0, "high": 1.0}
    half = kept_share(target, original, [1.0, 0.0, 0.0, 0.0] * 10, clusters)
    assert half["share"] == 0.5
    assert 0.25 < half["low"] < 0.4 < 0.6 < half["high"] < 0.75
    assert kept_share(target, target, original, clusters) is None
    assert kept_share(original, target, original, clusters) is None
    noise = [1.0, -1.0, -1.0, 1.1] * 10
    assert kept_share(target, noise, noise, [str(number) for number in range(40)]) is None
