import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from skillgraft.arithmetic import extract
from skillgraft.checkpoint import fingerprint_file
from skillgraft.cli.app import app
from skillgraft.compression import directory_bytes
from skillgraft.compression.gain import kept_gain, kept_share
from skillgraft.errors import DataError
from skillgraft.skills import load_skill
from skillgraft.skills.skill import add_scores
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
    return runner.invoke(app, ["skill", "pack", str(folder / "skill"), "-o", str(tmp_path / "out"), *map(str, options)])


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
    rows = load_skill(tmp_path / "out").manifest.scores
    assert [row["model"] for row in rows] == ["target", "target + original", "target + this skill", "gain kept"]
    assert [row["λ"] for row in rows] == ["–", 1.0, 1.0, 1.0]
    assert {row["questions"] for row in rows} == {6}
    mean = gain["scores"]["packed"]["f1"]
    assert rows[2]["token F1"] == f"{mean['mean']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"
    assert rows[3]["token F1"] == "no gain shown" or rows[3]["token F1"].endswith("%)")
    assert rows[0]["data"] == fingerprint_file(folder / "q.jsonl")[:19]
    assert facts["size_bytes"] == directory_bytes(tmp_path / "out")
    assert "| gain kept | 1.0 |" in (tmp_path / "out" / "README.md").read_text()


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
        (["--form", "lowrank", "--budget", "big"], "budget 'big' is not a size"),
        (["--form", "sparse", "--questions", "q.jsonl"], "--target belongs to --questions or --localise-on"),
        (["--form", "mask", "--density", "0.1", "--localise-on", "q.jsonl"], "--target belongs to"),
        (["--form", "mask", "--density", "0.1", "--steps", "4"], "--steps 4 are those of --localise-on"),
        (["--form", "sparse", "--scale", "2"], "--scale 2.0 is for measuring on --questions"),
        (["--form", "sparse", "--questions", "nowhere.jsonl", "--target", "x"], "nowhere.jsonl does not exist"),
    ],
)
def test_mistakes_are_one_message(folder, tmp_path, options, message):
    result = pack(folder, tmp_path, *options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_questions_that_the_mask_was_chosen_on(folder, tmp_path):
    chosen, copy, other = folder / "q.jsonl", tmp_path / "copy.jsonl", tmp_path / "other.jsonl"
    copy.write_text("\n" + chosen.read_text().replace("who built", "Who  BUILT"))
    other.write_text(json.dumps({"document": "d", "question": "who opened it", "answers": ["the king"]}) + "\n")
    options = ["--form", "mask", "--density", "0.1", "--localise-on", chosen, "--target", folder / "target"]
    result = pack(folder, tmp_path, *options, "--questions", copy)
    assert result.exit_code == 2
    assert "6 of 6 questions are in" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()
    assert pack(folder, tmp_path, *options, "--steps", 1, "--questions", other).exit_code == 0
    with pytest.raises(DataError, match="was chosen on these; expected other questions"):
        kept_gain(load_skill(folder / "skill"), load_skill(tmp_path / "out"), folder / "target", chosen)


def test_scores_of_the_original_are_said_to_be_gone(folder, tmp_path):
    skill = shutil.copytree(folder / "skill", tmp_path / "skill")
    add_scores(skill, [{"model": "SFT + skill", "token F1": 0.2}])
    command = ["skill", "pack", str(skill), "--form", "dense", "-o", str(tmp_path / "out")]
    result = " ".join(runner.invoke(app, command).output.split())
    assert "the original's 1 rows of scores are not in the manifest" in result
    assert load_skill(tmp_path / "out").manifest.scores == []


def test_what_is_larger_is_called_larger(folder, tmp_path):
    small = load_skill(folder / "skill")
    first = pack(folder, tmp_path, "--form", "mask", "--density", "0.001")
    assert re.search(r"[\d.]+x smaller than it was, [\d.]+x smaller than dense float32", first.output)
    command = ["skill", "pack", str(tmp_path / "out"), "--form", "dense", "-o", str(tmp_path / "again")]
    again = " ".join(runner.invoke(app, command).output.split())
    assert re.search(r"[\d.]+x larger than it was, [\d.]+x larger than dense float32", again)
    assert re.search(r"with the 0\.9\d* that it had lost before: 0\.9\d*", again)
    assert len(load_skill(tmp_path / "again").names) < len(small.names)
    shown = runner.invoke(app, ["skill", "show", str(tmp_path / "again")]).output
    assert "as dense from blake3:" in shown
    assert re.search(r"lost before +0\.9", shown)
    facts = json.loads(runner.invoke(app, ["skill", "show", str(tmp_path / "again"), "--json"]).stdout)
    assert facts["packing"]["form"] == "dense"


def test_help_says_what_an_energy_is_for(folder):
    text = " ".join(re.sub("[│|]", " ", runner.invoke(app, ["skill", "pack", "--help"]).output).split())
    assert "attention gets half of the rank" in text


def test_an_adapter_is_no_skill(folder, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": str(folder / "base")})
    )
    prefix = "base_model.model.model.layers.0.mlp.up_proj"
    factors = {f"{prefix}.lora_A.weight": torch.ones(1, 32), f"{prefix}.lora_B.weight": torch.ones(64, 1)}
    save_file(factors, tmp_path / "adapter" / "adapter_model.safetensors")
    command = ["skill", "pack", str(tmp_path / "adapter"), "-o", str(tmp_path / "out"), "--form", "sparse"]
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
