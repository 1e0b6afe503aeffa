"""Opt-in (`make test-slow`): the recipes of the regimes on the default model, at a small setting on the almanac."""

import json
from pathlib import Path

import pytest

from skillgraft import run

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "examples" / "almanac" / "target"

pytestmark = pytest.mark.slow


def small(recipe, tmp_path, monkeypatch, *overrides):
    monkeypatch.delenv("SKILLGRAFT_PRECISION", raising=False)
    return run(ROOT / "recipes" / recipe, overrides=overrides, runs=tmp_path / "runs")


def facts(result, stage):
    return json.loads((result.stages[stage] / "stage.json").read_text())["facts"]


def test_single_passages(tmp_path, monkeypatch):
    data = [f"passages.documents={TARGET}", f"passages.questions={TARGET}/questions.jsonl"]
    limits = ["passages.limit_documents=2", "passages.retention_passages=0", "passages.trainer.num_train_epochs=6"]
    result = small("past-single.yaml", tmp_path, monkeypatch, *data, *limits)
    curve = facts(result, "passages")["curve"]
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    [evaluation] = result.evaluations
    assert evaluation["documents"] == 2
    assert [row["role"] for row in evaluation["rows"]] == ["base", "sft", "grafted", "control", "control", "control"]
    answers = json.loads((result.stages["passages"] / "answers.json").read_text())
    assert answers["sft"]["answers"] != answers["start"]["answers"]
    assert answers["grafted"]["answers"] != answers["sft"]["answers"]


def test_two_stages(tmp_path, monkeypatch):
    stages = ("answer", "answer_unread", "form")
    data = [f"read.documents={TARGET}", f"scores.documents={TARGET}", f"scores.questions={TARGET}/questions.jsonl"]
    data += [f"{stage}.{field}={TARGET}" for stage in stages for field in ("questions", "about")]
    limits = [f"{stage}.limit_documents=2" for stage in ("read", *stages, "scores")]
    steps = [f"{stage}.trainer={{max_steps: 2, learning_rate: 1.0e-4}}" for stage in ("read", *stages)]
    result = small("two-stage.yaml", tmp_path, monkeypatch, *data, *limits, *steps, "scores.retention=false")
    assert facts(result, "answer")["questions"] == result.evaluations[0]["questions"] > 10
    assert len(result.evaluations[0]["rows"]) == 5


def test_replay(tmp_path, monkeypatch):
    stages = ("plain", "quarter", "as_much")
    data = [f"{stage}.documents={TARGET}" for stage in (*stages, "scores")]
    data += [f"{stage}.replay.text={ROOT / 'examples' / 'almanac' / 'source'}/documents.jsonl" for stage in stages[1:]]
    limits = [f"{stage}.limit_documents=2" for stage in (*stages, "scores")]
    steps = [f"{stage}.trainer={{num_train_epochs: 1, learning_rate: 1.0e-4}}" for stage in stages]
    questions = f"scores.questions={TARGET}/questions.jsonl"
    result = small("replay.yaml", tmp_path, monkeypatch, *data, *limits, *steps, questions, "scores.retention=false")
    own = facts(result, "plain")["tokens"]
    assert [facts(result, stage)["replayed_tokens"] for stage in stages] == [0, round(0.25 * own), own]
