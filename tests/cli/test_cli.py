import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from skillgraft.cli import run as run_command
from skillgraft.cli.app import VERBS, app
from skillgraft.stages import KINDS
from tests.recipes import tiny_recipe
from tests.tiny import tiny_checkpoint


@pytest.fixture
def mine(finished, tmp_path):
    """The folder of a finished run of this test's own: one that it may run again."""
    return finished.copy(tmp_path / "mine").folder


def invoke(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(*arguments):
    """Return the one message of a command that must refuse: exit code 2, no traceback."""
    result = invoke(*arguments)
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error ")
    return " ".join(result.stderr.split())


def test_run_prints_stages_table_and_report(finished, mine):
    for expected in ("tiny: 7 of 7 stages to run", "sft (sft)", "grafted (inject)"):
        assert expected in finished.stderr
    for expected in ("SFT + skill (λ = 1)", "SFT + random vector", "report.html"):
        assert expected in finished.stdout
    again = invoke("run", mine / "recipe.yaml", "--runs", mine / "runs")
    assert again.stderr.count(": cached") == 7
    assert "All stages were cached" in again.stdout


def test_a_report_elsewhere_keeps_what_it_computed_with_the_run(mine, tmp_path):
    kept = mine / "runs" / "tiny" / "report.json"
    assert json.loads(kept.read_text())["geometry"]["ranks"] is False
    assert invoke("report", kept.parent, "-o", tmp_path / "mail").exit_code == 0
    assert json.loads(kept.read_text())["geometry"]["ranks"] is True
    assert (tmp_path / "mail" / "report.json").read_text() == kept.read_text()
    assert "Effective rank" in (tmp_path / "mail" / "report.html").read_text()
    again = invoke("run", mine / "recipe.yaml", "--runs", mine / "runs")
    assert again.exit_code == 0
    assert json.loads(kept.read_text())["geometry"]["ranks"] is True


def test_on_a_terminal_the_stages_are_drawn(mine, monkeypatch):
    consoles = {
        name: Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
        for name in ("out_console", "err_console")
    }
    for name, console in consoles.items():
        monkeypatch.setattr(run_command, name, console)
    result = invoke("run", mine / "recipe.yaml", "--runs", mine / "runs")
    assert result.exit_code == 0, result.output
    tree, table = (consoles[name].file.getvalue() for name in ("err_console", "out_console"))
    tree = tree.rpartition("tiny, from base")[2]  # as it was drawn last
    assert [tree.count(text) for text in ("├─ sft", "│  │     └─ random", "└─ scores")] == [1, 1, 1]
    assert tree.count("cached") == 7
    assert "SFT + skill (λ = 1)" in table
    assert table.endswith(f"Report: {mine / 'runs/tiny/report.html'}\n")


def test_quiet_prints_the_last_line_alone(mine):
    quiet = invoke("run", mine / "recipe.yaml", "--runs", mine / "runs", "--quiet")
    assert quiet.stdout == f"Report: {mine / 'runs/tiny/report.html'}\n"
    assert quiet.stderr == ""
    assert "did you mean 'scale'" in fails("run", mine / "recipe.yaml", "--quiet", "--set", "grafted.scael=1")


def events(*arguments):
    result = invoke("run", *arguments, "--json")
    return result, [json.loads(line) for line in result.stdout.splitlines()]


def test_json_events(mine, tmp_path):
    result, lines = events(mine / "recipe.yaml", "--runs", mine / "runs")
    assert [line["event"] for line in lines] == ["run_started"] + ["stage_cached"] * 7 + ["run_finished"]
    assert result.stderr == ""
    assert [row["stage"] for row in lines[0]["stages"]] == list(lines[-1]["stages"])
    assert lines[-1]["evaluations"][0]["questions"] == 4
    assert lines[-1]["report"] == str(mine / "runs/tiny/report.html")
    assert lines[-1]["cached"] is True
    result, lines = events(mine / "recipe.yaml", "--runs", tmp_path, "--set", "grafted.scael=1")
    assert result.exit_code == 2
    assert [line["event"] for line in lines] == ["run_failed"]
    assert "did you mean 'scale'" in lines[0]["error"]


def test_dry_run_runs_nothing(finished, tmp_path):
    folder = finished.folder
    result = invoke(
        "run", folder / "recipe.yaml", "--runs", tmp_path / "runs", "--dry-run", "--set", "seed=5", "--json"
    )
    plan = json.loads(result.stdout)
    assert [row["state"] for row in plan["stages"]] == ["to run"] * 7
    assert plan["recipe"]["seed"] == 5
    assert not (tmp_path / "runs").exists()
    cached = json.loads(invoke("run", folder / "recipe.yaml", "--runs", folder / "runs", "--dry-run", "--json").stdout)
    assert {row["state"] for row in cached["stages"]} == {"cached"}
    table = invoke("run", folder / "recipe.yaml", "--runs", tmp_path / "runs", "--dry-run")
    assert "GiB" in table.stdout
    assert yaml.safe_load(table.stdout.split("\n\n")[0])["name"] == "tiny"


def test_status(finished, tmp_path):
    folder = finished.folder
    rows = json.loads(invoke("status", folder / "runs", "--json").stdout)
    assert sorted(row["name"] for row in rows) == sorted(
        ["sft", "rl", "skill", "random", "grafted", "control", "scores"]
    )
    assert {row["state"] for row in rows} == {"finished"}
    cut = tmp_path / "runs" / "stages" / "rl-0.work" / "checkpoint-40"
    cut.mkdir(parents=True)
    assert "resumes from step 40" in json.loads(invoke("status", tmp_path / "runs", "--json").stdout)[0]["state"]
    assert "not a directory" in fails("status", tmp_path / "none")


def test_the_verbs_stand_alone(finished, tmp_path):
    runs = finished.folder / "runs" / "tiny"
    more = ("--license", "cc0-1.0", "-o", tmp_path / "skill", "--json")
    done = invoke("extract", "--rl", runs / "rl", "--sft", runs / "sft", *more)
    assert json.loads(done.stdout)["form"] == "lowrank"
    assert json.loads(invoke("skill", "show", tmp_path / "skill", "--json").stdout)["license"] == "cc0-1.0"
    done = invoke(
        "inject", "--target", runs / "sft", "--skill", tmp_path / "skill", "--scale", 1.0, "-o", tmp_path / "out"
    )
    assert done.exit_code == 0, done.output
    assert "skill survived rounding" in done.stdout
    expected, got = runs / "grafted" / "model.safetensors", tmp_path / "out" / "model.safetensors"
    assert load(expected) == load(got)
    questions = finished.folder / "data" / "questions.jsonl"
    done = invoke("eval", runs / "sft", tmp_path / "out", "--questions", questions, "--no-retention", "--json")
    evaluation = json.loads(done.stdout)
    assert [row["label"] for row in evaluation["rows"]] == ["sft", "out"]
    assert evaluation["questions"] == 4


def load(file):
    from safetensors.torch import load_file

    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def test_bad_recipes(finished, tmp_path):
    folder = finished.folder
    run = ("run", folder / "recipe.yaml", "--runs", tmp_path / "runs", "--set")
    assert "did you mean 'scale'" in fails(*run, "grafted.scael=1")
    assert "no stage 'sftt'; did you mean 'sft'" in fails(*run, "rl.from=sftt")
    assert "cycle" in fails(*run, "sft.from=rl")
    assert "does not exist" in fails("run", tmp_path / "none.yaml")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds none" in fails(*run, f"sft.documents={empty}/")
    assert not (tmp_path / "runs").exists()


def test_broken_checkpoints(finished, tmp_path):
    folder = finished.folder
    run = ("run", folder / "recipe.yaml", "--runs", tmp_path / "runs", "--set")
    untokenized = shutil.copytree(folder / "base", tmp_path / "untokenized")
    (untokenized / "tokenizer.json").unlink()
    assert "tokenizer.json" in fails(*run, f"base={untokenized}/")
    truncated = shutil.copytree(folder / "base", tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in fails(*run, f"base={truncated}/")
    assert "model.safetensors" in fails("eval", truncated, "--questions", folder / "data" / "questions.jsonl")
    assert not list(tmp_path.glob("runs/**/stage.json"))


@pytest.mark.train
def test_a_skill_for_another_base(finished, tmp_path):
    folder = finished.folder
    other = tiny_checkpoint(tmp_path / "other", seed=99)
    message = fails("inject", "--target", other, "--skill", folder / "runs/tiny/skill", "-o", tmp_path / "out")
    assert "base" in message
    assert not (tmp_path / "out").exists()
    skill = folder / "runs/tiny/skill/"
    run = ("run", folder / "recipe.yaml", "--runs", tmp_path / "runs", "--quiet", "--set")
    message = fails(*run, f"grafted.skill={skill}/", "--set", f"base={other}/")
    assert message.startswith("error stages.grafted")
    assert "looks like another base" in message
    assert not (tmp_path / "runs").exists()  # found before the first stage
    message = fails(*run, f"grafted.target={other}/")
    assert message.startswith("error stages.grafted")
    assert not list((tmp_path / "runs").glob("stages/inject-*/stage.json"))


def test_an_output_that_exists(finished, tmp_path):
    runs = finished.folder / "runs" / "tiny"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    assert "exists already" in fails(
        "inject", "--target", runs / "sft", "--skill", runs / "skill", "-o", tmp_path / "out"
    )
    assert "exists already" in fails("extract", "--rl", runs / "rl", "--sft", runs / "sft", "-o", tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("No space left on device")]
)
def test_a_full_disk(finished, tmp_path, monkeypatch, error):
    def fill(stage, context):
        context.out.mkdir()
        (context.out / "half").write_text("half")
        raise error

    monkeypatch.setitem(KINDS, "sft", replace(KINDS["sft"], run=fill))
    message = fails("run", finished.folder / "recipe.yaml", "--runs", tmp_path / "runs", "--quiet")
    assert "stages.sft" in message
    assert "full" in message
    assert not list(tmp_path.rglob("half"))


@pytest.mark.process
def test_ctrl_c_keeps_the_work_and_the_rerun_goes_on(tmp_path):
    recipe = tiny_recipe(tmp_path / "recipe", sft_steps=4000)
    command = [sys.executable, "-m", "skillgraft", "run", str(recipe), "--runs", str(tmp_path / "runs"), "--json"]
    environment = {**os.environ, "SKILLGRAFT_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    for line in process.stdout:
        if json.loads(line).get("step", 0) >= 3:
            break
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping after this step with a checkpoint" in stderr
    *_, stage, whole = (json.loads(line) for line in stdout.splitlines())
    assert (stage["event"], stage["interrupted"]) == ("stage_failed", True)
    assert (whole["event"], whole["error"]) == ("run_failed", "stopped")
    assert "resumes from the last checkpoint" in stderr
    assert "Traceback" not in stderr
    [row] = json.loads(invoke("status", tmp_path / "runs", "--json").stdout)
    assert "resumes from step" in row["state"]
    assert not list((tmp_path / "runs").rglob("stage.json"))


@pytest.mark.process
def test_a_verb_loads_its_own_module_alone():
    shared = {"app", "completion", "console", "options"}
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom skillgraft.cli.app import app\n"
        "assert CliRunner().invoke(app, [*sys.argv[1:], '--help']).exit_code == 0\n"
        "print(*(name.removeprefix('skillgraft.cli.') for name in sys.modules if name.startswith('skillgraft.cli.')))"
    )
    for verb, own in ((["compare"], {"compare"}), (["skill", "ls"], {"skill", "skill.library"})):
        shown = subprocess.run([sys.executable, "-c", code, *verb], capture_output=True, text=True, check=True).stdout
        assert set(shown.split()) == shared | own


def test_an_old_verb_says_its_new_name():
    for verb in ("show", "check", "convert", "pack", "ls", "add", "remove", "push", "pull"):
        assert f"'{verb}' is now 'skillgraft skill {verb}'" in fails(verb, "anything", "--at", "all")
    assert "'search' is now 'skillgraft tune'" in fails("search", "merge.yaml")
    assert "'skill inject' is 'skillgraft inject'" in fails("skill", "inject")


def test_an_unknown_verb_names_the_closest():
    assert fails("mrege", "a").startswith("error there is no verb 'mrege'; did you mean 'merge'? available: chat, ")
    message = fails("skill", "shwo")
    assert message.startswith("error there is no verb 'skill shwo'; did you mean 'show'? available: add, check, ")
    assert message.endswith("see: skillgraft skill --help")


def test_help_lists_every_verb():
    top, skill = invoke("--help").stdout, invoke("skill", "--help").stdout
    for path in VERBS:
        group, _, verb = path.rpartition(" ")
        assert f"│ {verb} " in (skill if group else top), path
    assert "│ skill " in top


@pytest.mark.process
def test_help_has_examples_and_loads_no_torch():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom skillgraft.cli.app import VERBS, app\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "for path in ('', 'skill', *VERBS):\n"
        "    result = CliRunner().invoke(app, [*path.split(), '--help'])\n"
        "    assert result.exit_code == 0, path\n"
        "    assert path not in VERBS or 'Example: skillgraft ' + path in result.stdout, path\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names():
    import skillgraft

    assert callable(skillgraft.run)
    assert all(callable(getattr(skillgraft, name)) for name in skillgraft.__all__)
    with pytest.raises(AttributeError, match="it has compare, extract, inject"):
        _ = skillgraft.nothing


@pytest.mark.process
def test_ending_walks_through_no_garbage():
    """What was imported is taken from the collector's reach before the interpreter ends, also after an error."""
    code = (
        "import atexit, gc, sys; from skillgraft.cli.app import main;"
        "atexit.register(lambda: print('frozen', gc.get_freeze_count() > 10_000, gc.get_threshold()[0]));"
        "sys.argv[1:] = {words}; main()"
    )
    for words, threshold in (
        (["--help"], 50_000),
        (["skill", "show", "nothing-here"], 50_000),
        (["run", "nothing-here"], 700),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(words=words)], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.stdout.splitlines()[-1] == f"frozen True {threshold}", done.stderr
