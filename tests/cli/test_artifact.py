"""`skillgraft skill …`: show, check, convert, ls, add, remove."""

import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from skillgraft.arithmetic import extract
from skillgraft.checkpoint import write_provenance
from skillgraft.cli.app import app
from skillgraft.skills.library import library_home
from skillgraft.skills.skill import add_scores
from tests.tiny import edit_json, tiny_checkpoint, tiny_finetune

BASE = {"id": "some/base", "fingerprint": "blake3:0b"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli-skills")
    base = tiny_checkpoint(folder / "base")
    sft = tiny_finetune(base, folder / "sft", seed=1)
    write_provenance(sft, kind="sft", base=BASE)
    names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"]
    extract(
        tiny_finetune(sft, folder / "rl", seed=2, names=names, size=1e-2),
        sft,
        folder / "skill",
        domain="the \x1b[31mred\u202e almanac",
        license="cc0-1.0",
        language="en",
        seed=7,
    )
    add_scores(folder / "skill", [{"model": "SFT + skill", "λ": 1.0, "F1": "0.2 (0.1 to 0.3)", "questions": 40}])
    write_provenance(tiny_finetune(base, folder / "target", seed=3), kind="sft", base=BASE)
    return folder


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def of_skill(*arguments, code=0):
    return invoke("skill", *arguments, code=code)


def said(result):
    return " ".join(result.stdout.split())


def test_show(folder):
    text = of_skill("show", folder / "skill").stdout
    for expected in (
        "the ⟨U+001B⟩[31mred⟨U+202E⟩ almanac",
        "some/base (blake3:0b)",
        "llama, hidden size 32, 4 heads, vocabulary 320",
        "3 dense",
        "cc0-1.0",
        "0 (relative Frobenius)",
        "SFT + skill",
        "0.2 (0.1 to 0.3)",
    ):
        assert expected in text, expected
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    rows = [re.split(r"\s*│\s*", line.strip("│ ")) for line in text.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows[:3]] == ["attention", "mlp", "norm"]
    assert rows[1][2] == "2,048"


def test_show_as_json(folder):
    facts = json.loads(of_skill("show", folder / "skill", "--json").stdout)
    assert facts["base"] == BASE
    assert facts["forms"] == {"dense": 3}
    assert [row["kind"] for row in facts["modules"]] == ["attention", "mlp", "norm"]
    assert sum(row["share"] for row in facts["modules"]) == pytest.approx(1)
    assert facts["norm"] ** 2 == pytest.approx(sum(row["norm"] ** 2 for row in facts["modules"]))
    assert facts["parameters"] == 32 + 2048 + 1024
    assert facts["bytes"] == sum(file.stat().st_size for file in (folder / "skill").iterdir())
    assert facts["scores"][0]["questions"] == 40
    assert (facts["seed"], facts["language"], facts["license"]) == (7, "en", "cc0-1.0")


def test_check_and_its_exit_codes(folder, tmp_path):
    fits = of_skill("check", folder / "target", folder / "skill")
    assert fits.stdout.splitlines()[0] == "fits"
    (copied := tiny_finetune(folder / "target", tmp_path / "remarks") / "skillgraft.json").unlink()
    remarks = json.loads(of_skill("check", copied.parent, folder / "skill", "--json").stdout)
    assert remarks["verdict"] == "fits with remarks"
    assert [finding["level"] for finding in remarks["findings"]] == ["fits", "fits", "fits", "remark"]
    other = tiny_checkpoint(tmp_path / "other", seed=9)
    edit_json(other / "config.json", num_attention_heads=8, head_dim=4)
    refused = of_skill("check", other, folder / "skill", code=1)
    assert refused.stdout.splitlines()[0] == "refused"
    assert "head_dim is 4, expected 8; num_attention_heads is 8, expected 4" in said(refused)
    assert "looks like another base" in said(refused)
    refused = of_skill("check", other, folder / "skill", "--allow-other-base", "--json", code=1)
    levels = {finding["about"]: finding["level"] for finding in json.loads(refused.stdout)["findings"]}
    assert levels == {"tensors": "fits", "architecture": "refused", "tokenizer": "fits", "base": "remark"}
    message = " ".join(of_skill("check", folder / "target", "none", code=2).stderr.split())
    assert "none: no such directory, and no skill of that name in the library" in message
    of_skill("check", tmp_path / "none", folder / "skill", code=2)


def test_check_with_its_arguments_swapped(folder, monkeypatch):
    monkeypatch.chdir(folder)
    message = " ".join(of_skill("check", "skill", "target", code=2).stderr.split())
    assert "skill is a skill, expected the checkpoint that is to receive it, and then the skill" in message
    assert "skillgraft skill check target skill" in message
    assert "skillgraft skill check target squad-recall" in of_skill("check", "squad-recall", "target", code=2).stderr
    assert "no config.json" in of_skill("check", "skill", "skill", code=2).stderr


def test_a_misspelt_name_of_a_shipped_skill(folder):
    message = " ".join(of_skill("show", "squad-recal", code=2).stderr.split())
    assert "did you mean 'squad-recall'? available: squad-answer-format, squad-recall" in message


def test_check_looks_at_the_numbers(folder, tmp_path):
    skill = shutil.copytree(folder / "skill", tmp_path / "skill")
    tensors = load_file(skill / "skill.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, skill / "skill.safetensors")
    found = json.loads(of_skill("check", folder / "target", skill, "--json", code=1).stdout)
    assert found["verdict"] == "refused"
    (reason,) = [finding for finding in found["findings"] if finding["level"] == "refused"]
    assert reason["about"] == "contents"
    assert "'model.norm.weight' holds 1 numbers that are NaN or infinite" in reason["message"]
    invoke("inject", "--target", folder / "target", "--skill", skill, "-o", tmp_path / "out", code=2)


def test_a_hostile_manifest_cannot_speak_to_the_terminal(folder, tmp_path):
    skill = shutil.copytree(folder / "skill", tmp_path / "skill")
    text = "\x1b]0;title\x07\x1b[2J\u202e[bold]markup[/bold]\r"
    edit_json(skill / "skill.json", base={"id": text, "fingerprint": "blake3:0c"}, recipe=text, license=text)
    other = tiny_checkpoint(tmp_path / "other", seed=9)
    write_provenance(other, kind="sft", base=BASE)
    of_skill("add", skill, "hostile")
    said = [
        of_skill("show", skill).output,
        of_skill("ls").output,
        of_skill("check", other, skill, code=1).output,
        of_skill("check", other, skill, "--allow-other-base").output,
        invoke("inject", "--target", other, "--skill", skill, "-o", tmp_path / "out", code=2).output,
        invoke("inject", "--target", other, "--skill", skill, "-o", tmp_path / "out", "--allow-other-base").output,
    ]
    for output in said:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", output)
    assert all("[bold]markup[/bold]" in " ".join(output.split()) for output in (said[0], said[2], said[4]))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_json_does_not_know_are_refused(folder, tmp_path, number):
    skill = shutil.copytree(folder / "skill", tmp_path / "skill")
    of_skill("add", skill, "mine")
    edit_json(skill / "skill.json", scores=[{"model": "SFT + skill", "F1": "HERE"}])
    text = (skill / "skill.json").read_text().replace('"HERE"', number)
    for place in (skill, library_home() / "mine"):
        (place / "skill.json").write_text(text)
    refused = "'scores.0.F1' is "
    for arguments in (("skill", "show", skill), ("skill", "show", skill, "--json"), ("skill", "add", skill, "other")):
        assert refused in " ".join(invoke(*arguments, code=2).stderr.split())
    (row,) = json.loads(of_skill("ls", "--json").stdout, parse_constant=pytest.fail)
    assert refused in row["problem"]


def test_norms_whose_squares_overflow_are_refused(folder, tmp_path):
    skill = shutil.copytree(folder / "skill", tmp_path / "skill")
    of_skill("add", skill, "mine")
    tensors = json.loads((skill / "skill.json").read_text())["tensors"]
    for place in (skill, library_home() / "mine"):
        edit_json(place / "skill.json", tensors={name: {**entry, "norm": 1e308} for name, entry in tensors.items()})
    pack = ("skill", "pack", skill, "--form", "sparse", "-o", tmp_path / "out")
    shown = ("skill", "show", skill)
    for arguments in (shown, (*shown, "--json"), pack, ("skill", "check", folder / "target", skill)):
        said_so = " ".join(invoke(*arguments, code=2).stderr.split())
        assert "1e+308 is not a norm of weights, expected at most 1e+150" in said_so
    assert "damaged: mine: " in said(of_skill("ls"))
    assert not (tmp_path / "out").exists()


def test_an_empty_name_is_not_this_directory(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder / "skill")
    out = ("-o", tmp_path / "out")
    for arguments in (
        ("skill", "show", ""),
        ("skill", "check", folder / "target", ""),
        ("skill", "convert", "", "--to", "peft", *out),
        ("skill", "pack", "", "--form", "sparse", *out),
        ("skill", "add", ""),
        ("skill", "push", "", "me/recall"),
        ("inject", "--target", folder / "target", "--skill", "", *out),
        ("merge", "--method", "task_arithmetic", "--base", folder / "target", "--model", "", *out),
    ):
        stderr = " ".join(invoke(*arguments, code=2).stderr.split())
        assert "the name of a skill is empty; expected a directory or a name that" in stderr, arguments
    assert not (tmp_path / "out").exists()
    assert json.loads(of_skill("show", ".", "--json").stdout)["seed"] == 7


def test_check_says_what_inject_says(folder, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=9)
    refused = invoke("inject", "--target", other, "--skill", folder / "skill", "-o", tmp_path / "out", code=2)
    found = json.loads(of_skill("check", other, folder / "skill", "--json", code=1).stdout)["findings"]
    (reason,) = [finding["message"] for finding in found if finding["level"] == "refused"]
    assert " ".join(reason.split()) in " ".join(refused.stderr.split())
    assert not (tmp_path / "out").exists()


def test_convert_show_and_check_an_adapter(folder, tmp_path):
    refused = of_skill("convert", folder / "skill", "--to", "peft", "-o", tmp_path / "adapter", code=2)
    assert "--rank" in refused.stderr
    assert not (tmp_path / "adapter").exists()
    done = of_skill("convert", folder / "skill", "--to", "peft", "-o", tmp_path / "adapter", "--rank", 8, "--drop")
    assert "2 modules, rank 8, λ = 1, relative error 0." in said(done)
    assert "1 tensors were left out" in said(done)
    facts = json.loads(of_skill("show", tmp_path / "adapter", "--json").stdout)
    assert (facts["kind"], facts["base"], facts["ranks"]) == ("PEFT adapter", "some/base", {"8": 2})
    assert "2 of rank 8" in said(of_skill("show", tmp_path / "adapter"))
    checked = json.loads(of_skill("check", folder / "target", tmp_path / "adapter", "--json").stdout)
    assert checked["verdict"] == "fits with remarks"
    assert "does not say on which weights it was trained (it names some/base)" in checked["findings"][-1]["message"]
    small = tiny_checkpoint(tmp_path / "small", num_hidden_layers=1)
    refused = json.loads(of_skill("check", small, tmp_path / "adapter", "--json", code=1).stdout)
    assert "which" in refused["findings"][0]["message"]
    report = json.loads(
        of_skill(
            "convert", folder / "skill", "--to", "peft", "-o", tmp_path / "two", "--rank", 64, "--drop", "--json"
        ).stdout
    )
    assert report["dropped"].keys() == {"model.norm.weight"}
    again = of_skill("convert", tmp_path / "two", "--to", "peft", "-o", tmp_path / "three", code=2)
    assert "is a PEFT adapter already" in again.stderr


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("skill", "skillgraft extract --rl ADAPTER --sft SFT"),
        ("mergekit", "skillgraft export RECIPE --mergekit"),
        ("petf", "did you mean 'peft'"),
    ],
)
def test_other_forms(folder, tmp_path, form, message):
    result = of_skill("convert", folder / "skill", "--to", form, "-o", tmp_path / "out", code=2)
    assert message in " ".join(result.stderr.split())


def test_the_library(folder, tmp_path, monkeypatch):
    assert "holds no skills yet" in said(of_skill("ls"))
    assert json.loads(of_skill("ls", "--json").stdout) == []
    added = json.loads(of_skill("add", folder / "skill", "almanac", "--json").stdout)
    assert added["name"] == "almanac"
    assert added["base"] == BASE
    assert "has this skill already, as 'almanac'" in " ".join(of_skill("add", folder / "skill", code=2).stderr.split())
    listed = said(of_skill("ls"))
    assert "some/base" in listed
    assert "F1 0.2" in listed
    assert json.loads(of_skill("ls", "--base", "blake3:ffff", "--json").stdout) == []
    assert "no skill that fits this" in said(of_skill("ls", "--domain", "cooking"))
    assert [row["name"] for row in json.loads(of_skill("ls", "--domain", "almanac", "--json").stdout)] == ["almanac"]
    assert of_skill("check", folder / "target", "almanac").stdout.splitlines()[0] == "fits"
    invoke("inject", "--target", folder / "target", "--skill", "almanac", "-o", tmp_path / "out")
    (tmp_path / "almanac").mkdir()
    monkeypatch.chdir(tmp_path)
    both = of_skill("show", "almanac", code=2)  # the empty directory here is taken, and that is said
    assert "is a directory here and a skill of the library" in " ".join(both.stderr.split())
    (tmp_path / "almanac").rmdir()
    (library_home() / "almanac" / "skill.safetensors").write_bytes(b"cut")
    assert "damaged: almanac: " in said(of_skill("ls"))
    assert json.loads(of_skill("ls", "--json").stdout)[0]["problem"]
    assert "removed" in said(of_skill("remove", "almanac"))
    assert "has no skill 'almanac'" in " ".join(of_skill("remove", "almanac", code=2).stderr.split())


@pytest.mark.process
def test_help_loads_no_torch():
    import subprocess
    import sys

    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom skillgraft.cli.app import app\n"
        "for verb in ('show', 'check', 'convert', 'ls', 'add', 'remove', 'push', 'pull'):\n"
        "    result = CliRunner().invoke(app, ['skill', verb, '--help'])\n"
        "    assert result.exit_code == 0 and 'Example: skillgraft skill ' + verb in result.stdout, verb\n"
        "for name in ('torch', 'numba', 'huggingface_hub', 'peft'):\n"
        "    assert name not in sys.modules, name\n"
        "import skillgraft.skills.library, skillgraft.skills.hub, skillgraft.skills.summary\n"
        "for name in ('torch', 'numba', 'huggingface_hub', 'peft'):\n"
        "    assert name not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
