"""Iterative refinement: the rounds of a `refine` entry are ordinary stages, and what they compute is Algorithm 1."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file

from skillgraft import load_skill, run
from skillgraft.adapters import get_adapter
from skillgraft.data.documents import read_documents
from skillgraft.data.tasks import read_questions
from skillgraft.errors import DataError, RecipeError
from skillgraft.pipeline.plan import plan
from skillgraft.recipe.load import load_recipe
from skillgraft.train.rl import train_rl
from skillgraft.train.sft import train_sft
from tests.recipes import tiny_recipe, write_jsonl
from tests.tiny import tiny_checkpoint, weights

SFT = {"trainer": {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "warmup_steps": 0}}
RL = {
    "reward": {"tests.domains.own_reward.vowels": 1.0},
    "trainer": {
        **{"max_steps": 2, "per_device_train_batch_size": 8, "max_completion_length": 6, "warmup_steps": 0},
        **{"learning_rate": 1e-2},
    },
}
DATA = {"documents": "data", "questions": "data/questions.jsonl"}
PLAIN = {
    "sft": {"kind": "sft", "from": "base", "documents": "data", **SFT},
    "rl": {"kind": "rl", "from": "sft", "questions": "data/questions.jsonl", **RL},
    "skill": {"kind": "extract", "rl": "rl", "sft": "sft"},
}


def refine(**settings):
    return {"kind": "refine", **DATA, "sft": SFT, "rl": RL, **settings}


def recipe(tmp_path, **stages):
    """Write base, four documents, a question on each, and a recipe with these stages alone."""
    file = tiny_recipe(tmp_path)
    data = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**data, "stages": stages}, sort_keys=False))
    return file


def addresses(file, *overrides):
    loaded = load_recipe(file, overrides)
    return {stage.name: stage.key for stage in plan(loaded, file.parent / "base", file.parent / "runs")}


def test_the_rounds_are_ordinary_stages(tmp_path):
    stages = load_recipe(recipe(tmp_path, skill=refine(rounds=3, scale=0.5, dtype="bfloat16"))).stages
    assert list(stages) == [
        *("skill_sft_1", "skill_rl_1", "skill_v_1"),
        *("skill_sft_2", "skill_init_2", "skill_rl_2", "skill_v_2"),
        *("skill_sft_3", "skill_init_3", "skill_rl_3", "skill"),
    ]
    assert {stages[f"skill_sft_{k}"].from_ for k in (1, 2, 3)} == {"base"}
    assert [stages[f"skill_sft_{k}"].part for k in (1, 2, 3)] == ["1/3", "2/3", "3/3"]
    assert [stages[f"skill_rl_{k}"].part for k in (1, 2, 3)] == ["1/3", "2/3", "3/3"]
    init = stages["skill_init_3"]
    assert (init.target, init.skill, init.scale) == ("skill_sft_3", "skill_v_2", 0.5)
    assert [stages[f"skill_rl_{k}"].from_ for k in (1, 2, 3)] == ["skill_sft_1", "skill_init_2", "skill_init_3"]
    assert (stages["skill"].rl, stages["skill"].sft, stages["skill"].dtype) == (
        *("skill_rl_3", "skill_sft_3"),
        "bfloat16",
    )
    assert stages["skill_v_2"].dtype == "float32"


@pytest.mark.train
def test_one_round_is_plain_past(tmp_path):
    """The same addresses, whatever the stages are called; so also the same weights, here made twice."""
    plain = addresses(recipe(tmp_path / "plain", **PLAIN))
    refined = addresses(recipe(tmp_path / "refined", skill=refine(rounds=1)))
    assert list(refined) == ["skill_sft_1", "skill_rl_1", "skill"]
    assert list(refined.values()) == list(plain.values())
    one = run(recipe(tmp_path / "plain", **PLAIN), runs=tmp_path / "one")
    two = run(recipe(tmp_path / "refined", skill=refine(rounds=1)), runs=tmp_path / "two")
    for name, other in (("rl", "skill_rl_1"), ("skill", "skill")):
        mine, theirs = weights(one.stages[name]), weights(two.stages[other])
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())
    assert load_skill(two.stages["skill"]).norm("model.layers.0.mlp.up_proj.weight") > 0


def test_the_first_rounds_are_those_of_a_shorter_refinement_on_the_same_documents(tmp_path):
    longer = addresses(recipe(tmp_path, skill=refine(rounds=2)))
    shorter = addresses(recipe(tmp_path, skill=refine(rounds=1, limit_documents=2)))
    assert shorter["skill_sft_1"] == longer["skill_sft_1"]
    assert shorter["skill_rl_1"] == longer["skill_rl_1"]
    assert shorter["skill"] == longer["skill_v_1"] != longer["skill"]
    assert longer["skill_sft_1"] != longer["skill_sft_2"]


def by_hand(folder, work, adapt, rounds=2):
    """Algorithm 1 on halves of the documents, with plain tensor arithmetic between the trainers."""
    documents, questions = read_documents(folder / "data"), read_questions(folder / "data/questions.jsonl")
    v = None
    for k in range(rounds):
        mine = documents[2 * k : 2 * k + 2]
        place = work / f"round-{k}"
        for name in ("sft", "sft.work", "rl", "rl.work"):
            (place / name).mkdir(parents=True)
        train_sft(folder / "base", place / "sft", place / "sft.work", documents=mine, trainer=SFT["trainer"])
        sft = weights(place / "sft")
        start = place / "sft"
        if v is not None:
            start = tiny_checkpoint(place / "init")
            init = {name: (tensor.double() + v[name].double()).float() for name, tensor in sft.items()}
            save_file(init, start / "model.safetensors", metadata={"format": "pt"})
        about = {document.id for document in mine}
        asked = [question for question in questions if question.document in about]
        train_rl(
            start,
            place / "rl",
            place / "rl.work",
            tasks=asked,
            reward=RL["reward"],
            trainer={**RL["trainer"], "per_device_train_batch_size": 8},
            adapter=get_adapter(adapt),
        )
        rl = weights(place / "rl")
        v = {name: (rl[name].double() - sft[name].double()).float() for name in sft}
    return v, sft, rl


@pytest.mark.train
@pytest.mark.parametrize("adapt", [None, {"kind": "lora", "r": 2}])
def test_two_rounds_are_algorithm_1(tmp_path, adapt):
    settings = {**RL, **({"adapt": adapt} if adapt else {})}
    file = recipe(tmp_path, skill=refine(rounds=2, rl=settings))
    result = run(file, runs=tmp_path / "runs")
    v, sft, rl = by_hand(tmp_path, tmp_path / "hand", adapt)
    made_sft, made_rl = weights(result.stages["skill_sft_2"]), weights(result.stages["skill_rl_2"])
    # after LoRA v₁ is the factors' product, which the difference of fp32 checkpoints has but for the last bits
    atol = 1e-6 if adapt else 0
    assert all(torch.equal(tensor, made_sft[name]) for name, tensor in sft.items())
    for name, tensor in rl.items():
        torch.testing.assert_close(made_rl[name], tensor, rtol=0, atol=atol)
    skill = load_skill(result.stages["skill"])
    for name in skill.names:
        torch.testing.assert_close(skill.delta(name), v[name], rtol=0, atol=atol)
    assert {name for name, delta in v.items() if delta.any()} == set(skill.names)
    # v₂ = θ_rl − θ_sft, not θ_rl − θ_init: it holds what the first round learnt
    first = load_skill(result.stages["skill_v_1"])
    name = "model.layers.0.mlp.up_proj.weight"
    step = made_rl[name].double() - weights(result.stages["skill_init_2"])[name].double()
    torch.testing.assert_close(skill.delta(name).double(), first.delta(name).double() + step, rtol=0, atol=1e-7)
    assert first.delta(name).norm() > 1e-3
    assert run(file, runs=tmp_path / "runs").cached


def test_settings_of_the_rounds_are_set_and_checked(tmp_path):
    file = recipe(tmp_path, skill=refine())
    stages = load_recipe(file, ["skill.rl.trainer.max_steps=7", "skill.rounds=1"]).stages
    assert stages["skill_rl_1"].trainer["max_steps"] == 7
    assert "part" not in json.loads(stages["skill_rl_1"].model_dump_json(exclude_defaults=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft": {"trainr": {}}}, r"unknown key 'stages\.skill\.sft\.trainr'; did you mean 'trainer'"),
        ({"rl": {"algorithm": "ppo"}}, r"'stages\.skill\.rl\.algorithm': must be 'grpo', 'rloo' or 'remax'"),
        (
            {"rl": {"questions": "q"}},
            r"stages\.skill\.rl\.questions: the refine stage decides it; set stages\.skill\.q",
        ),
        ({"sft": {"part": "1/2"}}, r"stages\.skill\.sft\.part: the refine stage decides it"),
        ({"rounds": 0}, r"'stages\.skill\.rounds': must be greater than or equal to 1"),
        ({"scale": float("nan")}, r"'stages\.skill\.scale': must be a finite number"),
        ({"round": 2}, r"unknown key 'stages\.skill\.round'; did you mean 'rounds'"),
        ({"from": "nothing"}, r"skill_sft_1\.from: there is no stage 'nothing'"),
    ],
)
def test_what_is_refused(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe(tmp_path, skill=refine(**changes)))


def test_names_must_be_free(tmp_path):
    with pytest.raises(RecipeError, match=r"stages\.skill_rl_1: the refine stage 'skill' makes a stage of this name"):
        load_recipe(recipe(tmp_path, skill=refine(), skill_rl_1=PLAIN["sft"]))


def test_more_rounds_than_documents(tmp_path):
    with pytest.raises(DataError, match=r"part 1/5: 4 documents cannot be cut into 5 parts"):
        addresses(recipe(tmp_path, skill=refine(rounds=5)))


def test_a_slice_without_questions(tmp_path):
    file = recipe(tmp_path, skill=refine())
    write_jsonl(tmp_path / "data/questions.jsonl", [{"document": "Vell", "question": "When?", "answers": ["1900"]}])
    with pytest.raises(DataError, match="names no known document: it asks about 'Vell', the documents are 'Tarn'"):
        addresses(file)
