"""Opt-in (`make test-slow`): every recipe end to end on the real default model, all stages of it, made small.

The data are the almanac's, wherever a recipe reads SQuAD passages.
"""

import json
import shutil

import pytest

from skillgraft import load_skill, run
from tests.recipe_root import RECIPES, recipe_root
from tests.small_recipe import make_small

pytestmark = pytest.mark.slow


@pytest.fixture
def runs(tmp_path):
    """Where results go; dozens of checkpoints are not kept until pytest's next but two."""
    yield tmp_path / "runs"
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


@pytest.mark.parametrize("name", [file.stem for file in RECIPES])
def test_a_recipe_end_to_end(name, tmp_path, runs, monkeypatch):
    monkeypatch.delenv("SKILLGRAFT_PRECISION", raising=False)
    file = recipe_root(tmp_path / "root") / "recipes" / f"{name}.yaml"
    recipe = make_small(file)
    result = run(file, runs=runs)
    assert result.report.exists()
    facts = {stage: json.loads((path / "stage.json").read_text())["facts"] for stage, path in result.stages.items()}
    for stage, made in facts.items():
        assert made.get("tokens", 1) > 0, stage
        assert made.get("norm", 1) > 0, stage
        assert made.get("leakage", {}).get("stay_given_away", 0) == 0, stage
    tables = {table["stage"]: table["rows"] for table in result.evaluations}
    for stage, settings in recipe["stages"].items():
        if settings["kind"] == "eval":
            models, more = settings["models"], settings.get("rows", [])
            assert [row["model"] for row in tables[stage]][: len(models)] == models
            assert len(tables[stage]) == len(models) + len(more)
            scored = [bool(row["retention"]) for row in tables[stage]]  # of models, not of prompts
            assert scored == [(settings.get("retention", True) is not False)] * len(models) + [False] * len(more)
        if settings["kind"] == "single_passage":
            rows = ["start", "sft", *(skill["row"] for skill in settings.get("skills", []))]
            assert {row["model"] for row in tables[stage]} == {f"{stage}/{row}" for row in rows}
    for row in (row for rows in tables.values() for row in rows):
        score = row["scores"]["f1"]
        assert 0 <= score["low"] <= score["mean"] <= score["high"] <= 1
    OF_ONE.get(name, lambda facts, result: None)(facts, result)
    assert run(file, runs=runs).cached


def _two_rounds_are_no_larger_one(facts, result):
    assert result.stages["past50x2"] != result.stages["past100"]
    assert load_skill(result.stages["past50x2"]).form == "dense"


def _some_answers_are_kept(facts, result):
    assert 0 < facts["mixed"]["kept"] <= facts["mixed"]["questions"]


def _one_self_edit_a_passage_is_kept(facts, result):
    assert [made["kept"] for made in facts["writer"]["rounds"]] == [1, 1]


def _passages_are_learnt_alone(facts, result):
    curve = facts["passages"]["curve"]
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    [evaluation] = result.evaluations
    assert evaluation["documents"] == 2
    assert [row["role"] for row in evaluation["rows"]] == ["base", "sft", "grafted", "control", "control", "control"]
    answers = json.loads((result.stages["passages"] / "answers.json").read_text())
    assert answers["sft"]["answers"] != answers["start"]["answers"]
    assert answers["grafted"]["answers"] != answers["sft"]["answers"]


def _as_much_is_replayed_as_said(facts, result):
    own = facts["plain"]["tokens"]
    replayed = [facts[stage]["replayed_tokens"] for stage in ("plain", "quarter", "as_much")]
    assert replayed == [0, round(0.25 * own), own]


def _renderings_are_written_and_read(facts, result):
    assert facts["own"]["renderings"] == 4
    assert facts["given"]["kept"] == {"given": 24}


def _questions_are_learnt_about_what_was_read(facts, result):
    assert facts["answer"]["questions"] == facts["answer_unread"]["questions"] > 5


OF_ONE = {
    "two-stage": _questions_are_learnt_about_what_was_read,
    "past-refine": _two_rounds_are_no_larger_one,
    "mixsd": _some_answers_are_kept,
    "self-edit": _one_self_edit_a_passage_is_kept,
    "past-single": _passages_are_learnt_alone,
    "replay": _as_much_is_replayed_as_said,
    "synthesis": _renderings_are_written_and_read,
}
"""Recipe -> what else must hold of it."""
