"""What a recipe may say of distill, mix and self_edit stages, and how their addresses and references follow."""

import pytest
import yaml

from skillgraft import run
from skillgraft.errors import RecipeError
from skillgraft.recipe.load import load_recipe
from skillgraft.run import prepare
from tests.recipes import tiny_recipe
from tests.tiny import weights

DISTIL = {"kind": "distill", "from": "base", "documents": "data"}
MIX = {"kind": "mix", "questions": "data/questions.jsonl"}
EDIT = {"kind": "self_edit", "from": "base", "documents": "data", "questions": "data/questions.jsonl"}


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({**DISTIL, "teacher_sees": "answer"}, "stages.x.teacher_sees: an answer needs questions"),
        ({**DISTIL, "teacher": "start", "teacher_rate": 0.1}, "stages.x.teacher_rate: teacher: start never moves"),
        ({**DISTIL, "skip_tokens": 9, "trainer": {"max_completion_length": 8}}, "9 of at most 8 tokens leaves none"),
        ({**DISTIL, "teacher_rate": 1.5}, "'stages.x.teacher_rate': must be less than or equal to 1"),
        ({**DISTIL, "documents": "mixed"}, "stages.x.documents: 'mixed' makes questions, no documents"),
        ({**MIX, "teacher_sees": "both"}, "stages.x: teacher_sees: both needs documents"),
        ({**MIX, "limit_documents": 2}, "stages.x: limit_documents needs documents"),
        ({**MIX, "naive_share": 1.1}, "'stages.x.naive_share'"),
        ({**EDIT, "keep": 5}, "stages.x.keep: 5 of 5 samples is no choice"),
        ({**EDIT, "style": "questions"}, "style: 'questions' makes questions; a self-edit is a text"),
        ({**EDIT, "style": "implicatons"}, "styles: 'implicatons' is not a style; did you mean 'implications'"),
        ({**EDIT, "learn": {"trainer": {"epochs": 1}}}, "stages.x: trainer: 'epochs' is not an argument of SFTConfig"),
        ({**DISTIL, "trainer": {"epochs": 1}}, "stages.x: trainer: 'epochs' is not an argument of DistillationConfig"),
    ],
)
def test_what_is_refused_before_anything_runs(tmp_path, stage, message):
    file = tiny_recipe(tmp_path, x=stage, mixed=MIX)
    with pytest.raises(RecipeError, match=message):
        run(file, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("stages/*"))


def test_a_teacher_that_never_moves_needs_no_rate(tmp_path):
    recipe = load_recipe(tiny_recipe(tmp_path, x={**DISTIL, "teacher": "start"}))
    assert recipe.stages["x"].teacher == "start"


def test_addresses_follow_prompts_and_data(tmp_path):
    def keys(*overrides):
        stages = prepare(tiny_recipe(tmp_path, x=EDIT, y=MIX), overrides, tmp_path / "runs", print)[2]
        return {stage.name: stage.key for stage in stages}

    before = keys()
    own = tmp_path / "own"
    own.mkdir()
    prompt = {"version": 1, "makes": "text", "prompt": "{text} Write about {title}."}
    (own / "implications.yaml").write_text(yaml.safe_dump(prompt))
    other = keys("x.prompts=own")
    assert {name for name in before if before[name] != other[name]} == {"x"}
    (own / "implications.yaml").write_text(yaml.safe_dump({**prompt, "prompt": "{text} Write of {title}."}))
    assert keys("x.prompts=own")["x"] != other["x"]
    assert keys("y.naive_share=0.5")["y"] != before["y"] == keys("y.naive_share=0.3")["y"]


@pytest.mark.train
def test_self_distillation_is_a_stage_like_any_other(tmp_path):
    """Trained, extracted as a skill and injected: the skill is what distilling changed."""
    trainer = {"max_steps": 2, "per_device_train_batch_size": 2, "max_completion_length": 4, "learning_rate": 1e-3}
    distill = {
        **DISTIL,
        "questions": "data/questions.jsonl",
        "adapt": {"kind": "lora", "r": 2},
        "trainer": {**trainer, "warmup_steps": 0},
    }
    file = tiny_recipe(
        tmp_path,
        distilled=distill,
        vector={"kind": "extract", "rl": "distilled", "sft": "base"},
        again={"kind": "inject", "target": "base", "skill": "vector"},
    )
    data = yaml.safe_load(file.read_text())
    data["stages"] = {name: data["stages"][name] for name in ("distilled", "vector", "again", "scores")}
    data["stages"]["scores"]["models"] = ["base", "distilled", "again"]
    file.write_text(yaml.safe_dump(data))
    result = run(file, runs=tmp_path / "runs")
    made, injected = weights(result.stages["distilled"]), weights(result.stages["again"])
    assert max((made[name] - injected[name]).abs().max() for name in made) < 1e-6
    rows = {row["model"]: row for row in result.evaluations[0]["rows"]}
    assert rows["distilled"]["label"] == "SDFT"
    assert rows["distilled"]["cost"]["train_flops"] > 0
    assert load_recipe(file).stages["distilled"].teacher_sees == "both"
    assert run(file, runs=tmp_path / "runs").cached
