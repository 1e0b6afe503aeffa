"""`skillgraft report` through the real command line, on the facts that runs leave."""

import json

import pytest

from skillgraft.report import render, write_report
from tests.cli.test_cli import fails, invoke
from tests.report import report_sample as sample


@pytest.fixture
def runs(tmp_path):
    """Two folders as finished runs leave them, of which the stages are gone."""
    for name in ("one", "two"):
        write_report({**sample.swept(), "title": f"Run {name}"}, tmp_path / name)
        (tmp_path / name / "run.json").write_text("{}")
    return tmp_path / "one", tmp_path / "two"


def test_a_run_is_rendered_again_where_it_lies(runs):
    one, _ = runs
    facts = json.loads((one / "report.json").read_text())
    (one / "report.html").unlink()
    result = invoke("report", one)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("SFT + skill (λ = 1) scores higher than SFT")
    assert result.stdout.endswith(f"Report: {one / 'report.html'}\n")
    assert json.loads((one / "report.json").read_text()) == facts
    assert (one / "report.html").read_text() == render(facts)


def test_into_another_folder_as_json(runs, tmp_path):
    one, _ = runs
    said = json.loads(invoke("report", one, "-o", tmp_path / "mail", "--json").stdout)
    assert said["report"] == str(tmp_path / "mail" / "report.html")
    assert said["facts"] == str(tmp_path / "mail" / "report.json")
    assert said["runs"]["one"].startswith("SFT + skill (λ = 1) scores higher than SFT")
    assert sorted(path.name for path in (tmp_path / "mail").iterdir()) == ["report.html", "report.json"]


def test_several_runs_side_by_side(runs, tmp_path):
    one, two = runs
    result = invoke("report", one, two, "-o", tmp_path / "both")
    assert result.exit_code == 0, result.output
    assert "two: SFT + skill (λ = 1) scores higher" in result.stdout
    assert "2 runs side by side" in (tmp_path / "both" / "report.html").read_text()
    facts = json.loads((tmp_path / "both" / "report.json").read_text())
    assert [run["title"] for run in facts["runs"].values()] == ["Run one", "Run two"]


def test_runs_of_one_name_are_told_apart(runs, tmp_path):
    one, _ = runs
    write_report(sample.facts(), tmp_path / "elsewhere" / "one")
    said = json.loads(invoke("report", one, tmp_path / "elsewhere" / "one", "-o", tmp_path / "both", "--json").stdout)
    assert list(said["runs"]) == ["one", "elsewhere/one"]


def test_checkpoints_that_are_gone_are_said(tmp_path):
    write_report(sample.facts(), tmp_path / "bare")
    result = invoke("report", tmp_path / "bare")
    assert result.exit_code == 0
    assert "bare: The checkpoints no longer exist" in result.stderr
    assert "The checkpoints no longer exist" in (tmp_path / "bare" / "report.html").read_text()


def test_mistakes(runs, tmp_path):
    one, two = runs
    assert "2 runs and no folder for their report; expected -o FOLDER" in fails("report", one, two)
    assert "has no report.json; expected the folder of a finished run" in fails("report", tmp_path / "nothing")
    before = (two / "report.json").read_text()
    for arguments in ((one, "-o", two), (one, two, "-o", two)):
        assert "is a run's folder, whose own report would be lost" in fails("report", *arguments)
    assert (two / "report.json").read_text() == before
    assert "a run was given twice" in fails("report", one, one, "-o", tmp_path / "both")
    assert "cannot write the report" in fails("report", one, "-o", one / "report.html")
    (one / "report.json").write_text("{")
    assert "is not the report of a run" in fails("report", one)
