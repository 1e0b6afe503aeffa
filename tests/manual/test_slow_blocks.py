"""Opt-in (`make test-slow`): README's first command and the whole tutorial, in a shell, with the real model."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.manual.blocks import ROOT, blocks

pytestmark = pytest.mark.slow


def typed(folder, text):
    """Run lines in a shell in a copy of the repository's files, `skillgraft` and `make` being those of this Python."""
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("recipes", "examples", "skills"):
        shutil.copytree(ROOT / name, folder / name, dirs_exist_ok=True)
    bin_folder = folder / "venv" / "bin"
    bin_folder.mkdir(parents=True)
    for name in ("python", "skillgraft"):
        script = f'#!/bin/sh\nexec {sys.executable} {"-m skillgraft" if name == "skillgraft" else ""} "$@"\n'
        (bin_folder / name).write_text(script)
        (bin_folder / name).chmod(0o755)
    (folder / "venv" / ".installed").touch()  # what `make install` would leave
    environment = {key: value for key, value in os.environ.items() if key != "SKILLGRAFT_PRECISION"}
    environment |= {"PATH": f"{bin_folder}:{os.environ['PATH']}", "MAKEFLAGS": "VENV=venv"}
    environment |= {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(["bash", "-c", text], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_first_command_of_the_readme(tmp_path):
    [block] = [block for block in blocks(ROOT / "README.md") if block.mark == "slow"]
    said = typed(tmp_path, "set -e\n" + block.text)
    assert "SFT + skill (λ = 1)" in said
    [report] = [line.removeprefix("Report: ") for line in said.splitlines() if line.startswith("Report: ")]
    assert Path(report).is_file()


def test_the_tutorial(tmp_path):
    text = "".join(
        each.text for each in blocks(ROOT / "docs" / "tutorial.md") if each.language == "bash" and not each.mark
    )
    said = typed(tmp_path, "set -e\n" + text.replace("skillgraft doctor", "skillgraft doctor || true"))
    assert said.count("SFT + skill (λ = ") >= 2
    assert (tmp_path / "runs" / "almanac" / "report.html").is_file()
