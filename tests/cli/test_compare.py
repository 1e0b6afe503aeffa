"""`skillgraft compare` through the real command line."""

import json
import os
import subprocess
import sys

import pytest
import torch

from skillgraft.arithmetic import extract
from tests.cli.test_cli import fails, invoke
from tests.tiny import tiny_checkpoint, tiny_finetune


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family").resolve()
    os.environ["SKILLGRAFT_CACHE"] = str(folder / "cache")
    tiny_checkpoint(folder / "base", dtype=torch.bfloat16)
    for seed, name in enumerate("ab", start=1):
        tiny_finetune(folder / "base", folder / name, seed=seed, size=5e-3)
    tiny_finetune(folder / "a", folder / "rl", seed=3, size=5e-4)
    extract(folder / "rl", folder / "a", folder / "skill")
    return folder


def given(family, *more):
    operands = [f"sft/one={family / 'a'}", f"sft/two={family / 'b'}", f"rl/skill={family / 'skill'}"]
    return ["compare", *operands, "--base", family / "base", *more]


def succeeds(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_tables_sentences_and_page(family, tmp_path):
    said = succeeds(*given(family, "-o", tmp_path / "page.html", "--spectra", "--rank", "2"))
    for shown in (
        "28,832 parameters",
        "norm relative to the base",
        "cosine",
        "pairs by group",
        "sft – rl",
        "Effective",
    ):
        assert shown in said
    assert "one, two: nearly orthogonal, as chance would have it: cosine" in said
    assert f"heat maps: {tmp_path / 'page.html'}" in said
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_json_says_everything(family):
    found = json.loads(succeeds(*given(family, "--json", "--threads", "1")))
    assert [vector["label"] for vector in found["vectors"]] == ["one", "two", "skill"]
    assert [pair["groups"] for pair in found["pairs"]] == ["sft – sft", "sft – rl", "sft – rl"]
    assert len(found["tensors"]) == 20
    assert found["settings"] == {"spectra": False, "rank": None, "allow": []}
    norms = 5 * 32  # too close to 1 for RL's small change to show in bf16: the skill leaves them out
    assert found["bytes_read"] == 3 * 2 * 28832 + 4 * (28832 - norms)


def test_skills_need_no_base(family):
    said = succeeds("compare", family / "skill", f"again={family / 'rl'}:{family / 'a'}")
    assert "nearly parallel, not by chance" in said
    assert "relative" not in said


def test_many_vectors_are_shown_in_several_tables(family):
    operands = [f"v{number}={family / 'a'}" for number in range(5)]
    said = succeeds("compare", *operands, "--base", family / "base")
    assert said.count("cosine\n") + said.count("cosine ") >= 2
    assert "v3, v4" in said


def test_mistakes(family, tmp_path):
    assert "expected two operands at least" in fails("compare", family / "a", "--base", family / "base")
    assert "no base was given; expected --base BASE" in fails("compare", family / "a", family / "b")
    assert "nowhere: no such directory" in fails(
        "compare", family / "a", tmp_path / "nowhere", "--base", family / "base"
    )
    assert "minus itself is zero" in fails("compare", family / "a", family / "base", "--base", family / "base")
    assert "two operands are called 'a'" in fails("compare", family / "a", family / "a", "--base", family / "base")
    (tmp_path / "page.html").write_text("mine")
    assert "page.html exists already" in fails(*given(family, "-o", tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text() == "mine"
    assert "cannot write" in fails(*given(family, "-o", tmp_path / "page.html" / "under" / "it.html"))
    assert invoke(*given(family, "--rank", "0")).exit_code == 2


@pytest.mark.process
def test_comparing_without_spectra_or_page_loads_no_torch(family):
    code = (
        "import json, sys\nfrom typer.testing import CliRunner\nfrom skillgraft.cli.app import app\n"
        "result = CliRunner().invoke(app, json.loads(sys.argv[1]))\n"
        "assert result.exit_code == 0, result.output\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = json.dumps(["compare", str(family / "a"), str(family / "b"), "--base", str(family / "base")])
    subprocess.run([sys.executable, "-c", code, command], check=True, timeout=120)
