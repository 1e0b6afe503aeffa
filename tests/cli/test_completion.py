"""What a shell is told when it asks for completions, by the protocol of bash, zsh and fish."""

import os
import shutil
import subprocess
import sys

import pytest

from skillgraft.cli import completion
from skillgraft.skills.library import add_skill
from skillgraft.skills.names import ANSWER_FORMAT, RECALL, shipped_skills

pytestmark = pytest.mark.process


def asked(shell, line, cwd):
    """Return what the command line answers a shell, line by line."""
    words = line.split(" ")
    told = {
        "bash": {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)},
        "zsh": {"_TYPER_COMPLETE_ARGS": line},
        "fish": {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
    }[shell]

    program = "from skillgraft.cli.app import app; app(prog_name='skillgraft')"
    environment = {**os.environ, **told, "_SKILLGRAFT_COMPLETE": f"complete_{shell}"}
    done = subprocess.run([sys.executable, "-c", program], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    for name in ("recipes/one.yaml", "recipes/two.yml", "here.yaml", "other.txt", "runs/mine/run.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    shutil.copytree(shipped_skills()[RECALL], tmp_path / "skills" / "mine")
    return tmp_path


def test_verbs(folder):
    assert asked("bash", "skillgraft co", folder).split() == ["compare"]
    assert asked("bash", "skillgraft sk", folder).split() == ["skill"]
    assert asked("bash", "skillgraft skill p", folder).split() == ["pack", "push", "pull"]
    assert asked("fish", "skillgraft skill co", folder).split("\n")[0].split("\t")[0] == "convert"
    assert '"check"' in asked("zsh", "skillgraft skill ch", folder)
    assert '"compare"' in asked("zsh", "skillgraft co", folder)
    assert asked("fish", "skillgraft co", folder).split("\n")[0].split("\t")[0] == "compare"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("skillgraft run ", ["here.yaml", "recipes/one.yaml", "recipes/two.yml"]),
        ("skillgraft merge recipes/t", ["recipes/two.yml"]),
        ("skillgraft report runs/", ["runs/mine"]),
        ("skillgraft inject --method ti", ["ties"]),
        ("skillgraft skill show sk", ["skills/mine"]),
        ("skillgraft inject --target x --skill squad-r", [RECALL]),
        ("skillgraft skill check base squad-r", [RECALL]),
        ("skillgraft skill show --js", ["--json"]),
        ("skillgraft docs err", ["errors"]),
        ("skillgraft run --dry", ["--dry-run"]),
    ],
)
def test_values(folder, line, expected):
    assert asked("bash", line, folder).split() == expected


def test_skills_of_the_library(folder, monkeypatch):
    add_skill(shipped_skills()[RECALL], "own")
    monkeypatch.chdir(folder)
    assert completion.complete_skills("") == ["own", ANSWER_FORMAT, RECALL, "skills/mine"]
    assert completion.complete_library("o") == ["own"]
    assert completion.complete_library("s") == []


def test_names_that_no_path_can_have(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert completion.complete_recipes("a\0b/") == []
    assert completion.complete_recipes("nowhere/") == []
    monkeypatch.setenv("SKILLGRAFT_LIBRARY", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    assert completion.complete_library("") == []


@pytest.mark.parametrize(
    "line",
    ["skillgraft inject --skill s", "skillgraft merge --method t", "skillgraft docs t", "skillgraft skill show s"],
)
def test_a_press_of_the_key_loads_no_torch(line, folder):
    """Nor NumPy, nor Numba: what takes longest to load."""
    code = (
        "import os, sys\n"
        f"os.environ.update(COMP_WORDS={line!r}, COMP_CWORD={str(len(line.split()) - 1)!r})\n"
        "os.environ['_SKILLGRAFT_COMPLETE'] = 'complete_bash'\n"
        "from skillgraft.cli.app import app\n"
        "try:\n    app(prog_name='skillgraft')\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'transformers', 'numba', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell(shell, tmp_path):
    program = "from skillgraft.cli.app import app; app(prog_name='skillgraft')"
    environment = {**os.environ, "_SKILLGRAFT_COMPLETE": f"source_{shell}"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert f"complete_{shell}" in done.stdout
