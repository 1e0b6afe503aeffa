"""What decides the address of stages with slices, judges and λ by pattern; what is refused; what a table calls them."""

import pytest

from skillgraft.errors import RecipeError
from skillgraft.pipeline.plan import plan
from skillgraft.recipe.load import load_recipe
from skillgraft.stages.eval import rows as describe_models
from tests.recipes import tiny_recipe

QUESTIONS = "data/questions.jsonl"
SFT = {"kind": "sft", "from": "base", "documents": "data"}
RL = {"kind": "rl", "from": "sft", "questions": QUESTIONS}
INJECT = {"kind": "inject", "target": "sft", "skill": "skill"}
JUDGED = {**RL, "reward": {"judge": 1.0}}
ENDPOINT = {"url": "http://host/v1", "model": "m"}


def planned(tmp_path, **stages):
    file = tiny_recipe(tmp_path, **stages)
    return plan(load_recipe(file), tmp_path / "base", tmp_path / "runs")


def keys(tmp_path, **stages):
    return {stage.name: stage.key for stage in planned(tmp_path, **stages)}


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ({**SFT, "part": "1/2"}, {**SFT, "limit_documents": 2}, True),
        ({**SFT, "part": "1/1"}, SFT, True),
        ({**SFT, "part": "1/2"}, {**SFT, "part": "2/2"}, False),
        ({**RL, "documents": "data"}, RL, True),
        ({**RL, "documents": "data", "part": "1/2"}, {**RL, "documents": "data", "limit_documents": 2}, True),
        ({**RL, "documents": "data", "part": "1/2"}, RL, False),
        ({**RL, "algorithm": "grpo"}, RL, True),
        ({**RL, "algorithm": "rloo"}, RL, False),
        ({**RL, "skip_without_variance": True}, RL, False),
        ({**JUDGED, "judge_endpoint": ENDPOINT}, {**JUDGED, "judge_endpoint": {**ENDPOINT, "retries": 9}}, True),
        ({**JUDGED, "judge_endpoint": ENDPOINT}, {**JUDGED, "judge_endpoint": {**ENDPOINT, "model": "n"}}, False),
        ({**JUDGED, "judge": "base"}, {**JUDGED, "judge": "sft"}, False),
        ({**INJECT, "scales": {"a*": 1, "ab*": 2}}, {**INJECT, "scales": {"ab*": 2, "a*": 1}}, False),
        ({**INJECT, "scales": {"a*": 1}}, INJECT, False),
    ],
)
def test_what_decides_an_address(tmp_path, one, two, same):
    found = keys(tmp_path, one=one, two=two)
    assert (found["one"] == found["two"]) is same


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({**RL, "order": "easy_to_hard"}, "order: easy_to_hard needs pass_rate_samples"),
        (
            {**RL, "order": "hard_to_easy", "pass_rate_samples": 4, "trainer": {"shuffle_dataset": True}},
            "order: hard_to_easy and trainer.shuffle_dataset are both given",
        ),
        ({**RL, "skip_without_variance": True, "trainer": {"beta": 0.1}}, "with trainer.beta a group without variance"),
        ({**RL, "part": "1/2"}, "part needs documents"),
        ({**RL, "limit_documents": 3}, "limit_documents needs documents"),
        ({**SFT, "part": "3/2"}, "'stages.x.part': must name a part such as 1/2"),
        ({**RL, "algorithm": "ppo"}, "'stages.x.algorithm': must be 'grpo', 'rloo' or 'remax'; got 'ppo'"),
        ({**INJECT, "scales": {"a": float("inf")}}, "must be a finite number"),
        ({**INJECT, "scales": {}}, "'stages.x.scales': must have at least 1 entry; got {}"),
        (
            {"kind": "inject", "target": "sft", "skills": [{"skill": "skill"}], "scales": {"*": 1}},
            "scales: λ by pattern is for one skill",
        ),
    ],
)
def test_what_is_refused(tmp_path, stage, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(tiny_recipe(tmp_path, x=stage))


def test_a_table_tells_where_the_vector_went(tmp_path):
    stages = planned(
        tmp_path,
        early={**INJECT, "target": "base"},
        before={**SFT, "from": "early"},
        on_top={**SFT, "from": "rl"},
        by_layer={**INJECT, "scales": {"model.layers.0.*": 0.5}},
        chance={"kind": "inject", "target": "base", "skill": "random"},
        chance_before={**SFT, "from": "chance"},
        scores={
            "kind": "eval",
            "models": ["sft", "grafted", "before", "on_top", "by_layer", "chance_before"],
            "questions": QUESTIONS,
        },
    )
    by_name = {stage.name: stage for stage in stages}
    about = describe_models(by_name, by_name["scores"])
    assert {model: (each["role"], each["label"]) for model, each in about.items()} == {
        "sft": ("sft", "SFT"),
        "grafted": ("grafted", "SFT + skill (λ = 1)"),
        "before": ("grafted", "skill, then SFT"),
        "on_top": ("other", "RL (rl), then SFT"),
        "by_layer": ("grafted", "SFT + skill (λ = 1 by pattern)"),
        "chance_before": ("control", "random vector, then SFT"),
    }
