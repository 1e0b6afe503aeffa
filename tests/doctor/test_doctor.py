"""The doctor on this machine, and with a Torch that is broken."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from skillgraft import doctor
from skillgraft.cli.app import app
from skillgraft.doctor.findings import Finding
from skillgraft.doctor.processor import probe


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "importing torch ended the process (SIGSEGV)"),
        ("raise ImportError('libtorch_cpu.so: cannot open')", "ImportError: libtorch_cpu.so: cannot open"),
        ("import sys; sys.exit(3)", "no reason given"),
    ],
)
def test_a_broken_torch(tmp_path, monkeypatch, code, message):
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    assert probe("torch") == {"error": message}


@pytest.mark.process
def test_a_torch_that_hangs(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(tmp_path)
    assert probe("torch", seconds=1) == {"error": "importing torch gave no answer in 1 s"}


@pytest.mark.process
def test_every_check_works_here_and_leaves_nothing(tmp_path):
    findings = doctor.examine(tmp_path / "runs")
    assert not [finding for finding in findings if "the check itself failed" in finding.found]
    named = list(dict.fromkeys(finding.check for finding in findings))
    assert named == list(doctor.checks(tmp_path, {}))
    precision = next(finding for finding in findings if finding.check == "precision")
    assert (precision.found, precision.severity) == ("fp32", "note")  # of the tests' own settings
    assert any(finding.check == "compiled arithmetic" and "kept in" in finding.found for finding in findings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("severity", "code"), [("ok", 0), ("note", 0), ("warning", 1), ("error", 2)])
def test_exit_codes(monkeypatch, severity, code):
    monkeypatch.setattr(doctor, "examine", lambda runs: [Finding("a", severity, "found", "means", "do this")])
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == code
    assert json.loads(result.stdout) == {
        "severity": severity,
        "findings": [{"check": "a", "severity": severity, "found": "found", "meaning": "means", "remedy": "do this"}],
    }
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == code
    assert "→ do this" in shown.stdout


def test_no_markup_from_the_machine(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda runs: [Finding("a", "note", "[red]x[/]", "[link=x]", "[b]")])
    assert "[red]x[/]" in CliRunner().invoke(app, ["doctor"]).stdout


@pytest.mark.process
def test_a_terminal_without_utf_8():
    code = (
        "import sys\nfrom skillgraft import doctor\nfrom skillgraft.cli.app import main\n"
        "doctor.examine = lambda runs: [doctor.Finding('text', 'error', 'ascii', 'such as λ', 'do')]\n"
        "sys.argv = ['skillgraft', 'doctor']\nmain()\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert "such as ?" in done.stdout


def test_help_says_the_exit_codes():
    text = " ".join(CliRunner().invoke(app, ["doctor", "--help"]).stdout.split())
    assert "Exit code: 0" in text
    assert "Example: skillgraft doctor" in text
