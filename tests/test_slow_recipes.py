"""Opt-in (`make test-slow`): every recipe end to end on the real default model, at the smallest setting that says much.

The data are the almanac's, wherever a recipe reads SQuAD passages.
"""

import json

import pytest

from skillgraft import load_skill, run
from tests.recipe_root import recipe_root

pytestmark = pytest.mark.slow

SCORES = ["scores.retention=false", "scores.max_new_tokens=8"]
ASKED = ["asked.limit_documents=2", "asked.max_new_tokens=64", "asked.filters.support=0", "asked.filters.repetition=1"]
SMALL = {
    "passage-only": ["sft_target.trainer.max_steps=2"],
    "implications": [
        "written.max_new_tokens=48",
        "sft_passages.trainer.max_steps=2",
        "sft_written.trainer.max_steps=2",
    ],
    "rewrite": ["written.max_new_tokens=48", "sft_passages.trainer.max_steps=2", "sft_written.trainer.max_steps=2"],
    "qa-sft": [*ASKED, "sft_asked.trainer.max_steps=2"],
    "sdft": [
        *ASKED,
        "sdft.trainer.max_steps=2",
        "sdft.trainer.per_device_train_batch_size=1",
        "sdft.trainer.warmup_steps=0",
        "sdft.trainer.max_completion_length=8",
        "sdft_titles.trainer.max_steps=2",
        "sdft_titles.trainer.per_device_train_batch_size=2",
        "sdft_titles.trainer.max_completion_length=12",
    ],
    "mixsd": [*ASKED, "mixed.attempts=2", "sft_asked.trainer.max_steps=2", "sft_mixed.trainer.max_steps=2"],
    "past-rewrite": [
        "written_source.limit_documents=2",
        "written_target.limit_documents=2",
        "written_source.max_new_tokens=48",
        "written_target.max_new_tokens=48",
        "sft_source.trainer.max_steps=2",
        "sft_target.trainer.max_steps=2",
        "rl_source.pass_rate_samples=0",
        "rl_source.trainer.max_steps=1",
        "rl_source.trainer.warmup_steps=0",
        "rl_source.trainer.per_device_train_batch_size=8",
        "rl_source.trainer.max_completion_length=8",
        "rl_source.reward={tests.domains.own_reward.vowels: 1.0}",
    ],
    "seal-renderings": [
        f"sft_{name}.trainer.max_steps=1" for name in ("passages", "implications", "two_rounds", "gpt", "rewrites")
    ],
    "self-edit": [
        "writer.limit_documents=2",
        "writer.samples=2",
        "writer.max_new_tokens=96",
        "writer.max_answer_tokens=8",
        "writer.learn.trainer.max_steps=2",
        "writer.trainer.max_steps=1",
        "written.limit_documents=2",
        "written_by_base.limit_documents=2",
        "written.max_new_tokens=48",
        "written_by_base.max_new_tokens=48",
        *(f"sft_{name}.trainer.max_steps=1" for name in ("writer", "base", "own")),
    ],
}
"""Recipe -> what makes it small."""


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_end_to_end(name, tmp_path, monkeypatch):
    monkeypatch.delenv("SKILLGRAFT_PRECISION", raising=False)
    root = recipe_root(tmp_path / "root", documents=4)
    file = root / "recipes" / f"{name}.yaml"
    result = run(file, overrides=[*SMALL[name], *SCORES], runs=tmp_path / "runs")
    facts = {stage: json.loads((path / "stage.json").read_text())["facts"] for stage, path in result.stages.items()}
    [evaluation] = result.evaluations
    assert evaluation["rows"][0]["model"] == "base"
    assert all(0 <= row["scores"]["f1"]["mean"] <= 1 for row in evaluation["rows"])
    for stage, made in facts.items():
        if "tokens" in made:
            assert made["tokens"] > 0, stage
        if "leakage" in made:
            assert made["leakage"]["stay_given_away"] == 0, stage
    if "skill" in result.stages:
        assert load_skill(result.stages["skill"]).names
    if name == "mixsd":
        assert 0 < facts["mixed"]["kept"] <= facts["mixed"]["questions"]
    if name == "self-edit":
        assert [made["kept"] for made in facts["writer"]["rounds"]] == [1, 1]
    assert run(file, overrides=[*SMALL[name], *SCORES], runs=tmp_path / "runs").cached
