"""`skillgraft tune` on the command line: what it says, Ctrl-C, and a kill that is gone on from."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from skillgraft.tuning import loop
from tests.cli.test_cli import fails, invoke


def command(folder, out, *more):
    fixed = ("--questions", folder / "dev.jsonl", "--max-new-tokens", 2, "--threads", 1, "-o", out)
    return ("tune", folder / "merge.yaml", *fixed, *more)


def test_what_it_says(folder, tmp_path):
    options = ("--metric", "answer_likelihood", "--metric", "f1=0.5", "--vary", "weights=0,2", "--trials", 4)
    result = invoke(*command(folder, tmp_path / "out", *options))
    assert result.exit_code == 0, (result.output, result.exception)
    lines = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("trial 0, target alone", "trial 1, recipe as it is", "trial 2, cmaes", "trial 3, cmaes")
    ]
    assert "operands.0.weight 0.5, operands.1.weight 1" in lines[1]
    assert "answer_likelihood + 0.5 f1, 8 questions" in result.stdout
    assert "the best of 4 trials on the same 8 questions: its score there is optimistic; --report-q" in result.stdout
    assert f"{tmp_path / 'out/best.yaml'}, {tmp_path / 'out/best'}" in result.stdout
    again = command(folder, tmp_path / "out", *options, "--report-questions", folder / "report.jsonl")
    done = invoke(*again, "--json")
    assert json.loads(done.stdout)["report"]["questions"] == 4
    assert done.stderr == ""
    assert "winner - target on the others: " in invoke(*again).stdout


def test_mistakes(folder, tmp_path):
    given = command(folder, tmp_path / "out")
    assert "--vary weights: expected NAME=LOW,HIGH, such as density=0.05,0.9" in fails(*given, "--vary", "weights")
    assert "--vary weights=0: expected NAME=LOW,HIGH" in fails(*given, "--vary", "weights=0")
    assert "--vary weights=a,b: expected" in fails(*given, "--vary", "weights=a,b")
    assert "--metric f1=much: 'much' is no number" in fails(*given, "--metric", "f1=much")
    assert "metric 'F1' is unknown; available: answer_likelihood, cont" in fails(*given, "--metric", "F1")
    assert "merge recipe: nowhere.yaml does not exist" in fails("tune", "nowhere.yaml", *given[2:])
    assert not (tmp_path / "out").exists()


def test_ctrl_c_keeps_the_log(folder, tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_finish", interrupted)
    result = invoke(*command(folder, tmp_path / "out", "--trials", 3))
    assert result.exit_code == 130
    assert result.stderr.endswith("stopped; the same command resumes from the last trial\n")
    assert len((tmp_path / "out/trials.jsonl").read_text().splitlines()) == 3


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")
def test_a_killed_process_is_gone_on_from(folder, tmp_path):
    """A real kill of the real command; what it had looked at stays, and the rest is as without the kill."""
    options = ("--trials", "6", "--metric", "answer_likelihood")
    arguments = [str(a) for a in command(folder, tmp_path / "cut", *options)]
    environment = {**os.environ, "SKILLGRAFT_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-m", "skillgraft", *arguments], env=environment, stderr=subprocess.DEVNULL
    )
    log = tmp_path / "cut/trials.jsonl"
    until = time.monotonic() + 120
    while (
        process.poll() is None and time.monotonic() < until and not (log.is_file() and log.read_text().count("\n") > 2)
    ):
        time.sleep(0.002)
    process.kill()
    process.wait()
    before = log.read_bytes()
    assert before.count(b"\n") >= 3
    assert invoke(*arguments).exit_code == 0
    assert log.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert invoke(*(str(a) for a in command(folder, tmp_path / "whole", *options))).exit_code == 0
    cut, whole = (
        [json.loads(line) for line in (tmp_path / name / "trials.jsonl").read_text().splitlines()]
        for name in ("cut", "whole")
    )
    assert [row["point"] for row in cut] == [row["point"] for row in whole]
    assert [row["score"] for row in cut] == pytest.approx([row["score"] for row in whole], abs=1e-6)
    recipes = [yaml.safe_load((tmp_path / name / "best.yaml").read_text())["operands"] for name in ("cut", "whole")]
    assert [operand["weight"] for operand in recipes[0]] == [operand["weight"] for operand in recipes[1]]
