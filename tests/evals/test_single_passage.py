import json
import shutil

import pytest
import torch
import yaml

from skillgraft import run
from skillgraft.adapters.lora import LoraAdapter
from skillgraft.arithmetic import extract
from skillgraft.data.documents import Document
from skillgraft.data.passages import passages
from skillgraft.errors import CompatibilityError, DataError, MissingPathError, RecipeError
from skillgraft.evals import single_passage
from skillgraft.evals.intervals import bootstrap
from skillgraft.models.loading import load_model
from skillgraft.recipe.load import load_recipe
from skillgraft.report import read_report
from skillgraft.settings.text import WHOLE
from skillgraft.stages import KINDS
from skillgraft.stages.costs import Costing
from skillgraft.train.single_passage import Answerer, Learner
from tests.recipes import PLACES, tiny_recipe, write_jsonl
from tests.tiny import tiny_checkpoint, tiny_finetune, weights

pytestmark = pytest.mark.train

TRAINER = {"max_steps": 4, "per_device_train_batch_size": 1, "learning_rate": 1e-2, "warmup_steps": 0}


def passages_recipe(folder, stages=None, **settings):
    """A tiny recipe with one single-passage stage and a skill from a checkpoint beside it."""
    tiny_recipe(folder)
    if not (folder / "rl").exists():
        tiny_finetune(folder / "base", folder / "rl", size=0.05)
    stage = {
        "kind": "single_passage",
        "documents": "data",
        "questions": "data/questions.jsonl",
        "adapt": {"kind": "lora", "r": 2},
        "trainer": TRAINER,
        "max_new_tokens": 4,
        "skills": [{"skill": "skill", "row": "grafted"}, {"skill": "skill", "row": "unread", "unread": True}],
        **settings,
    }
    made = {
        "skill": {"kind": "extract", "rl": "./rl", "sft": "./base"},
        "n1": {key: value for key, value in stage.items() if value is not ...},
        **(stages or {}),
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "tiny", "base": "./base", "stages": made}))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("n1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLGRAFT_CACHE", str(folder / "cache"))
        stages = {"random": {"kind": "random_vector", "skill": "skill"}}
        skills = [
            {"skill": "skill", "row": "grafted"},
            {"skill": "skill", "row": "half", "scale": 0.5},
            {"skill": "skill", "row": "unread", "unread": True},
            {"skill": "random", "row": "random"},
            {"skill": "skill", "row": "both"},
            {"skill": "random", "row": "both", "scale": -0.5},
        ]
        recipe = passages_recipe(folder, stages, skills=skills, retention_passages=2)
        return recipe, run(recipe, runs=folder / "runs")


def test_the_table(finished):
    _, result = finished
    [evaluation] = result.evaluations
    rows = {row["model"]: row for row in evaluation["rows"]}
    assert [(name, row["label"], row["role"], row.get("on")) for name, row in rows.items()] == [
        ("n1/start", "base", "base", None),
        ("n1/sft", "SFT on the passage", "sft", None),
        ("n1/grafted", "SFT + skill (λ = 1)", "grafted", "SFT on the passage"),
        ("n1/half", "SFT + skill (λ = 0.5)", "grafted", "SFT on the passage"),
        ("n1/unread", "base + skill", "control", "base"),
        ("n1/random", "SFT + random vector", "control", "SFT on the passage"),
        ("n1/both", "SFT + skill (2 skills, λ = 1, λ = -0.5)", "grafted", "SFT on the passage"),
    ]
    assert (evaluation["questions"], evaluation["documents"]) == (4, 4)
    raws = json.loads((result.stages["n1"] / "answers.json").read_text())
    for name, raw in raws.items():
        assert rows[f"n1/{name}"]["scores"]["f1"] == bootstrap(raw["scores"]["f1"], PLACES)
    difference = next(
        each
        for each in evaluation["comparisons"]
        if (each["metric"], each["row"], each["against"]) == ("f1", "SFT + skill (λ = 1)", "SFT on the passage")
    )
    paired = [a - b for a, b in zip(raws["grafted"]["scores"]["f1"], raws["sft"]["scores"]["f1"], strict=True)]
    assert difference["difference"] == bootstrap(paired, PLACES)["mean"]


def test_what_the_rows_cost(finished):
    _, result = finished
    record = json.loads((result.stages["n1"] / "stage.json").read_text())
    made = {name: json.loads((result.stages[name] / "stage.json").read_text()) for name in ("skill", "random")}
    facts = record["facts"]
    rows = {row["model"].removeprefix("n1/"): row["cost"]["train_seconds"] for row in result.evaluations[0]["rows"]}
    assert rows["start"] == 0
    assert rows["sft"] == facts["seconds"] > 0
    assert rows["unread"] == made["skill"]["seconds"]
    assert rows["grafted"] == pytest.approx(facts["seconds"] + made["skill"]["seconds"])
    assert rows["both"] == pytest.approx(facts["seconds"] + sum(each["seconds"] for each in made.values()))
    assert facts["passages"] == 4
    assert [point["step"] for point in facts["curve"]] == [1, 2, 3, 4]
    assert facts["curve"][-1]["loss"] < facts["curve"][0]["loss"]


def test_retention_is_the_mean_over_the_passages_that_were_asked_for(finished):
    _, result = finished
    raws = json.loads((result.stages["n1"] / "answers.json").read_text())
    assert set(raws["sft"]["retention"]) <= {0.0, 0.5, 1.0}
    assert set(raws["start"]["retention"]) <= {0.0, 1.0}
    assert len(raws["sft"]["retention"]) == len(raws["start"]["retention"]) > 50


def test_the_report_shows_it(finished):
    _, result = finished
    facts = read_report(result.directory)
    assert facts["evaluations"][0]["stage"] == "n1"
    page = result.report.read_text()
    assert "SFT on the passage" in page
    assert "base + skill" in page


def test_a_second_run_is_cached_and_scales_decide(finished):
    recipe, result = finished
    assert run(recipe, runs=result.directory.parent).cached
    stages = {"random": {"kind": "random_vector", "skill": "skill"}}
    changed = passages_recipe(recipe.parent, stages, skills=[{"skill": "skill", "row": "grafted", "scale": 0.9}])
    assert run(changed, runs=result.directory.parent).stages["n1"] != result.stages["n1"]


@pytest.mark.parametrize("adapt", [{"kind": "lora", "r": 2}, None])
def test_the_models_in_memory_are_those_that_stages_make(tmp_path, monkeypatch, adapt):
    """Each row of the first passage against sft, inject and their checkpoints; the second against a fresh start."""
    adapted = {"adapt": adapt} if adapt else {}
    stages = {
        "sft": {"kind": "sft", "from": "base", "documents": "data", "limit_documents": 1, **adapted}
        | {"trainer": TRAINER},
        "grafted": {"kind": "inject", "target": "sft", "skill": "skill", "scale": 1.0},
        "unread": {"kind": "inject", "target": "base", "skill": "skill", "scale": 1.0},
    }
    seen = []
    answer = single_passage.closed_book

    def watched(model, *rest):
        seen.append({name: value.detach().clone() for name, value in model.named_parameters()})
        return answer(model, *rest)

    monkeypatch.setattr(single_passage, "closed_book", watched)
    recipe = passages_recipe(tmp_path, stages, adapt=adapt, limit_documents=2)
    result = run(recipe, runs=tmp_path / "runs")
    start, unread, sft, grafted, second, _ = seen
    for found, expected in (
        (start, weights(tmp_path / "base")),
        (unread, weights(result.stages["unread"])),
        (sft, weights(result.stages["sft"])),
        (grafted, weights(result.stages["grafted"])),
    ):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=3e-7)
    moved = [name for name in sft if not torch.equal(sft[name], start[name])]
    assert len(moved) >= 14  # the tolerance above is far below what learning and skill changed
    assert max((sft[name] - start[name]).abs().max() for name in moved) > 1e-3
    assert max((grafted[name] - sft[name]).abs().max() for name in grafted) > 1e-2
    alone = tmp_path / "alone"
    shutil.copytree(tmp_path, alone, ignore=shutil.ignore_patterns("runs", "alone"))
    lines = (alone / "data" / "documents.jsonl").read_text().splitlines(keepends=True)
    (alone / "data" / "documents.jsonl").write_text("".join(lines[1:]))
    lines = (alone / "data" / "questions.jsonl").read_text().splitlines(keepends=True)
    (alone / "data" / "questions.jsonl").write_text("".join(lines[1:]))
    del seen[:]
    run(alone / "recipe.yaml", runs=alone / "runs", overrides=["n1.limit_documents=1"])
    for name, value in seen[2].items():
        assert torch.equal(value, second[name])  # what was learnt of the first passage left no trace


def test_a_kill_costs_one_passage(tmp_path, monkeypatch):
    recipe = passages_recipe(tmp_path, retention_passages=1)
    whole = run(recipe, runs=tmp_path / "whole")
    learnt = []
    learn = Learner.learn

    def counted(self, number, *rest):
        learnt.append(number)
        if learnt == [0, 1, 2]:
            raise KeyboardInterrupt
        return learn(self, number, *rest)

    monkeypatch.setattr(Learner, "learn", counted)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, runs=tmp_path / "killed")
    again = run(recipe, runs=tmp_path / "killed")
    assert learnt == [0, 1, 2, 2, 3]
    first, second = (json.loads((result.stages["n1"] / "answers.json").read_text()) for result in (whole, again))
    for row, raw in first.items():
        assert {key: raw[key] for key in ("answers", "scores", "retention", "flops")} == {
            key: second[row][key] for key in ("answers", "scores", "retention", "flops")
        }
    assert not list((tmp_path / "killed" / "stages").glob("*.work"))


def test_a_passage_is_learnt_from_all_its_renderings(tmp_path, monkeypatch):
    """A synthesize stage's documents are grouped by their source; the tokens are those of all of them."""
    tiny_recipe(tmp_path)
    renderings = [
        {"document": p, "text": f"In the year {1900 + i} they built a harbour at {p}, it is said."}
        for i, p in enumerate(PLACES)
    ]
    write_jsonl(tmp_path / "given.jsonl", renderings)
    stages = {"synth": {"kind": "synthesize", "documents": "data", "given": "given.jsonl"}}
    recipe = passages_recipe(tmp_path, stages, documents="synth", limit_documents=2)
    seen = []
    learn = Learner.learn

    def watched(self, number, passage, *rest):
        seen.append((passage.document.id, [each.text for each in passage.renderings]))
        return learn(self, number, passage, *rest)

    monkeypatch.setattr(Learner, "learn", watched)
    result = run(recipe, runs=tmp_path / "runs")
    assert seen == [
        (place, [f"The harbour of {place} was built in {1900 + i}.", renderings[i]["text"]])
        for i, place in enumerate(PLACES[:2])
    ]
    assert result.evaluations[0]["questions"] == 2


def test_passages_without_questions_are_not_learnt(tmp_path):
    recipe = passages_recipe(tmp_path)
    questions = tmp_path / "data" / "questions.jsonl"
    questions.write_text(questions.read_text().splitlines()[1] + "\n")
    result = run(recipe, runs=tmp_path / "runs")
    facts = json.loads((result.stages["n1"] / "stage.json").read_text())["facts"]
    assert (facts["passages"], facts["passages_without_questions"]) == (1, 3)


def test_no_skills_at_all(tmp_path):
    recipe = passages_recipe(tmp_path, skills=[], limit_documents=1)
    [evaluation] = run(recipe, runs=tmp_path / "runs").evaluations
    assert [row["role"] for row in evaluation["rows"]] == ["base", "sft"]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"skills": [{"skill": "skill", "row": "sft"}]}, RecipeError, "row 'sft' is always there"),
        (
            {"skills": [{"skill": "skill", "row": "a"}, {"skill": "skill", "row": "a", "unread": True}]},
            RecipeError,
            "row 'a' is unread and is not",
        ),
        ({"skills": [{"skill": "skill"}, {"skill": "skill"}]}, RecipeError, "names a skill twice; give each λ a row"),
        ({"skills": [{"skill": "skil"}]}, RecipeError, "n1.skills: there is no stage 'skil'; did you mean 'skill'"),
        ({"skills": [{"skill": "./base"}]}, MissingPathError, r"no skill\.json"),
        ({"skills": [{"skill": "skill", "scale": float("inf")}]}, RecipeError, "finite number"),
        ({"adapt": {"kind": "lora", "rank": 2}}, RecipeError, "'rank' is not an argument of LoraConfig"),
        ({"trainer": {"epochs": 2}}, RecipeError, "'epochs' is not an argument of SFTConfig"),
        ({"text": {"chunk_tokens": 4096}}, RecipeError, "4096 is more than trainer.max_length = 1024"),
        ({"questions": ...}, RecipeError, "'stages.n1.questions' is missing"),
    ],
)
def test_mistakes_are_found_before_anything_runs(tmp_path, settings, error, message):
    recipe = passages_recipe(tmp_path, **settings)
    with pytest.raises(error, match=message):
        run(recipe, runs=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("stages/*"))


def test_questions_about_other_documents(tmp_path):
    recipe = passages_recipe(tmp_path)
    write_jsonl(tmp_path / "data" / "questions.jsonl", [{"document": "Elsewhere", "question": "?", "answers": ["a"]}])
    with pytest.raises(DataError, match="asks about the document 'Elsewhere', which is not among the 4 documents"):
        run(recipe, runs=tmp_path / "runs")


def test_a_skill_of_another_model(tmp_path):
    recipe = passages_recipe(tmp_path)
    tiny_checkpoint(tmp_path / "other", hidden_size=64)
    tiny_finetune(tmp_path / "other", tmp_path / "other-rl")
    extract(tmp_path / "other-rl", tmp_path / "other", tmp_path / "foreign")
    with pytest.raises(CompatibilityError):
        run(recipe, runs=tmp_path / "runs", overrides=["n1.skills=[{skill: ./foreign}]"])
    assert not list((tmp_path / "runs").glob("stages/*"))


def test_learning_leaves_the_learner_as_it_was(tmp_path):
    start = tiny_checkpoint(tmp_path / "start")
    learner = Learner(
        start, tmp_path, adapter=LoraAdapter({"r": 2}), trainer=TRAINER, text=WHOLE, seed=0, checkpoint_seconds=300
    )
    [passage] = passages([Document("a", "Vell", "The harbour of Vell was built in 1901.")])
    _, operand = learner.learn(0, passage)
    for name, value in load_model(start).state_dict().items():
        assert torch.equal(learner._model.state_dict()[name], value)
    answerer = Answerer(start)
    answerer.become([operand])
    learner.forget()
    assert [path.name for path in tmp_path.iterdir()] == ["start"]


def test_the_estimate_counts_learning_and_every_row(tmp_path):
    recipe = load_recipe(passages_recipe(tmp_path, limit_documents=3, trainer={**TRAINER, "num_train_epochs": 5}))
    texts = [f"{place}\n\nThe harbour of {place} was built in {1900 + i}." for i, place in enumerate(PLACES[:3])]
    learnt = 5 * sum(map(len, texts)) / 3.7
    answered = 3 * (80 + 4) * 4  # questions, tokens of prompt and answer, rows
    needs = KINDS["single_passage"].needs(recipe.stages["n1"], Costing(1000))
    assert needs.flops == pytest.approx(6000 * learnt + 4000 * answered)
