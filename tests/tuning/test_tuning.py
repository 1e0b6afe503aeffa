"""A search from recipe to winner on tiny models: the optimum, the log, resuming, what is written, what is refused."""

import errno
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import torch
import yaml

from skillgraft.arithmetic import extract, inject, merge
from skillgraft.arithmetic.merge_recipe import parse_merge_recipe
from skillgraft.errors import CheckpointError, DataError, OutputExistsError, RecipeError, StorageError
from skillgraft.evals.answers import evaluate_checkpoint
from skillgraft.skills.library import add_skill
from skillgraft.tuning.live import LiveModel
from skillgraft.tuning.loop import tune
from skillgraft.tuning.space import space_of
from skillgraft.tuning.trials import open_log
from tests.recipes import write_jsonl
from tests.tiny import tiny_checkpoint, tiny_finetune, weights


def bowl(best, calls=None):
    """A metric whose optimum is known: 1 − the squared distance of the weights from `best`."""

    def score(recipe, questions):
        if calls is not None:
            calls.append(recipe)
        distance = sum((o.weight - b) ** 2 for o, b in zip(recipe.operands, best, strict=True))
        return {"f1": [1 - distance] * len(questions)}

    return score


def run(folder, out, **options):
    options = {"scorer": bowl([0.9, 0.2]), "trials": 40, **options}
    return tune(folder / "merge.yaml", folder / "dev.jsonl", out, **options)


def trials(out):
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


def without_seconds(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_cmaes_finds_a_known_optimum(folder, tmp_path):
    result = run(folder, tmp_path / "out", trials=120)
    winner = result["winner"]
    assert winner["values"] == {
        "operands.0.weight": pytest.approx(0.9, abs=0.03),
        "operands.1.weight": pytest.approx(0.2, abs=0.03),
    }
    assert winner["score"] > 0.998
    assert result["recipe_as_it_is"]["score"] == pytest.approx(1 - 0.4**2 - 0.8**2)
    assert result["target_alone"]["score"] == pytest.approx(1 - 0.9**2 - 0.2**2)
    assert (result["trials"], result["questions"]) == (120, 8)
    assert result["note"].startswith("the winner is the best of 120 trials on the same 8 questions")
    rows = trials(tmp_path / "out")
    assert [row["trial"] for row in rows] == list(range(120))
    assert [row["what"] for row in rows[:3]] == ["target alone", "recipe as it is", "cmaes"]
    assert all(0 <= value <= 1.5 for row in rows for value in row["values"].values())
    assert all(row["n"] == 8 and row["low"] <= row["score"] <= row["high"] and row["seconds"] >= 0 for row in rows)


def test_the_winner_is_a_recipe_and_its_checkpoint(folder, tmp_path):
    result = run(folder, tmp_path / "out")
    merge(tmp_path / "out/best.yaml", tmp_path / "again")
    made, again = weights(tmp_path / "out/best"), weights(tmp_path / "again")
    assert all(torch.equal(made[name], again[name]) for name in again)
    data = yaml.safe_load((tmp_path / "out/best.yaml").read_text())
    weight = [operand["weight"] for operand in data["operands"]]
    assert weight == list(result["winner"]["values"].values())
    assert not data["base"].startswith("/")
    a, b = (_delta(folder / name) for name in "ab")
    target = weights(folder / "target")
    for name in target:
        exact = target[name].double() + weight[0] * a[name].double() + weight[1] * b[name].double()
        assert torch.equal(made[name], exact.float())
    assert json.loads((tmp_path / "out/result.json").read_text()) == result


def _delta(skill):
    from safetensors.torch import load_file

    return load_file(skill / "skill.safetensors")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("by", ["cmaes", "random", "grid"])
def test_a_killed_search_goes_on_as_if_nothing_had_been(folder, tmp_path, by):
    whole = run(folder, tmp_path / "whole", by=by, trials=20)
    calls = []

    def kill_at_trial_nine(recipe, questions):
        if len(calls) == 9:
            raise Killed
        calls.append(recipe)
        return bowl([0.9, 0.2])(recipe, questions)

    with pytest.raises(Killed):
        run(folder, tmp_path / "cut", by=by, trials=20, scorer=kill_at_trial_nine)
    with (tmp_path / "cut/trials.jsonl").open("a") as file:
        file.write('{"trial": 9, "what"')  # a line that the kill tore
    calls.clear()
    resumed = run(folder, tmp_path / "cut", by=by, trials=20, scorer=bowl([0.9, 0.2], calls))
    assert len(calls) == len(trials(tmp_path / "whole")) - 9  # what was looked at is not looked at again
    assert without_seconds(trials(tmp_path / "cut")) == without_seconds(trials(tmp_path / "whole"))
    assert resumed == whole
    again = run(folder, tmp_path / "cut", by=by, trials=20, scorer=None)  # finished: no model is loaded
    assert again == whole


def test_more_trials_resume_and_replace_the_winner(folder, tmp_path):
    few = run(folder, tmp_path / "out", trials=4)
    many = run(folder, tmp_path / "out", trials=60)
    assert many == run(folder, tmp_path / "once", trials=60)
    assert many["winner"]["score"] > few["winner"]["score"]
    made, expected = weights(tmp_path / "out/best"), weights(tmp_path / "once/best")
    assert all(torch.equal(made[name], expected[name]) for name in expected)


def test_the_seed_decides(folder, tmp_path):
    one, two, three = (
        run(folder, tmp_path / str(number), seed=seed, trials=8) and trials(tmp_path / str(number))
        for number, seed in enumerate([1, 1, 2])
    )
    assert without_seconds(one) == without_seconds(two)
    assert [row["point"] for row in one[2:]] != [row["point"] for row in three[2:]]
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    run(folder, tmp_path / "global", seed=1, trials=8)
    assert (np.random.get_state()[1] == before).all()
    assert without_seconds(trials(tmp_path / "global")) == without_seconds(one)


def test_a_grid_is_regular(folder, tmp_path):
    run(folder, tmp_path / "out", by="grid", trials=12, vary={"weights": (0.0, 1.0)})
    points = [row["point"] for row in trials(tmp_path / "out")[2:]]
    assert points == [[x, y] for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)]


def test_looks_that_give_no_number_are_passed_over(folder, tmp_path):
    def sometimes(recipe, questions):
        value = math.nan if recipe.operands[0].weight > 0.7 else 1 - recipe.operands[0].weight
        return {"f1": [value] * (len(questions) - 1) + [0.5]}

    result = run(folder, tmp_path / "out", scorer=sometimes)
    rows = trials(tmp_path / "out")
    assert any(row["score"] is None and row["low"] is None and row["metrics"] == {"f1": None} for row in rows)
    assert result["winner"]["score"] == max(row["score"] for row in rows if row["score"] is not None)
    assert result["winner"]["trial"] == 0  # the target alone: nothing is better than that
    target, made = weights(folder / "target"), weights(tmp_path / "out/best")
    assert all(torch.equal(made[name], target[name]) for name in target)

    def never(recipe, questions):
        return {"f1": [math.inf] * len(questions)}

    with pytest.raises(RecipeError, match=r"none of 5 trials gave a finite score"):
        run(folder, tmp_path / "none", scorer=never, trials=5)
    assert not (tmp_path / "none/best").exists()


def test_the_report_is_made_once_on_other_questions(folder, tmp_path):
    calls = []
    options = {"report_questions": folder / "report.jsonl", "trials": 10}
    result = run(folder, tmp_path / "out", scorer=bowl([0.9, 0.2], calls), **options)
    assert len(calls) == 12  # ten trials, and winner and target on the others
    report = result["report"]
    assert report["questions"] == 4
    assert report["winner"]["score"] == pytest.approx(result["winner"]["score"])
    gain = result["winner"]["score"] - result["target_alone"]["score"]
    assert report["difference"]["mean"] == pytest.approx(gain)
    assert run(folder, tmp_path / "out", scorer=None, **options) == result


def test_a_mix_of_metrics(folder, tmp_path):
    def both(recipe, questions):
        weight = recipe.operands[0].weight
        return {"f1": [weight] * len(questions), "containment": [-(weight**2)] * len(questions)}

    result = run(folder, tmp_path / "out", scorer=both, metric={"f1": 1.0, "containment": 0.5}, trials=60)
    assert result["winner"]["values"]["operands.0.weight"] == pytest.approx(1.0, abs=0.02)  # w − w²/2
    assert result["winner"]["metrics"]["f1"] == pytest.approx(1.0, abs=0.02)


def test_parameters_and_layers_vary(folder, tmp_path):
    def score(recipe, questions):
        wanted = {"model.layers.0.*": 0.2, "model.layers.1.*": 1.0, "default": 0.5}
        weights = recipe.operands[0].weights or dict.fromkeys(wanted, 0.0)
        distance = sum((weights[key] - value) ** 2 for key, value in wanted.items())
        return {"f1": [-distance - (recipe.parameters.density - 0.6) ** 2] * len(questions)}

    recipe = {"method": "ties", "base": str(folder / "target"), "operands": [{"skill": str(folder / "a")}]}
    vary = {"weights": (0.0, 1.5), "density": (0.1, 1.0)}
    result = tune(recipe, folder / "dev.jsonl", tmp_path, vary=vary, per_layer=2, trials=150, scorer=score)
    values = result["winner"]["values"]
    assert list(values) == [
        "operands.0.weights.layers 0-0",
        "operands.0.weights.layers 1-1",
        "operands.0.weights.default",
        "density",
    ]
    assert list(values.values()) == pytest.approx([0.2, 1.0, 0.5, 0.6], abs=0.08)
    made = weights(tmp_path / "best")
    merge(tmp_path / "best.yaml", tmp_path / "again")
    assert all(torch.equal(tensor, made[name]) for name, tensor in weights(tmp_path / "again").items())


def test_the_recipe_as_it_is_is_that_to_the_last_bit(folder):
    operands = [{"skill": str(folder / "a"), "weight": 0.1}, {"skill": str(folder / "b"), "weight": -0.3}]
    recipe = parse_merge_recipe({"method": "ties", "base": str(folder / "target"), "operands": operands})
    space = space_of(recipe, {"weights": (-0.7, 2.1), "density": (0.03, 0.9)})
    assert space.recipe_at(space.start) == recipe
    assert [o.weight for o in space.recipe_at(None).operands] == [0.0, 0.0]


@pytest.mark.parametrize(("method", "alone"), [("ties", True), ("pcb", True), ("mediator", False), ("linear", False)])
def test_the_target_alone_where_a_method_can_leave_all_out(folder, tmp_path, method, alone):
    operands = [{"skill": str(folder / "a")}, {"skill": str(folder / "b")}]
    recipe = {"method": method, "base": str(folder / "target"), "operands": operands}
    result = tune(recipe, folder / "dev.jsonl", tmp_path, trials=4, vary={"weights": (0.1, 2.0)}, scorer=bowl([1, 1]))
    assert (result["target_alone"] is not None) == alone
    assert result["winner"]["what"] == "recipe as it is"


def test_groups_of_layers(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", num_hidden_layers=12)
    rl = tiny_finetune(base, tmp_path / "rl", names=[f"model.layers.{n}.mlp.up_proj.weight" for n in range(1, 12)])
    extract(rl, base, tmp_path / "skill")
    recipe = parse_merge_recipe(
        {"method": "ties", "base": str(base), "operands": [{"skill": str(tmp_path / "skill"), "weight": 0.4}]}
    )
    space = space_of(recipe, {"weights": (0.0, 2.0)}, per_layer=3)
    assert [d.name for d in space.dimensions] == [f"operands.0.weights.layers {r}" for r in ("1-3", "4-7", "8-11")]
    assert space.start == [0.2, 0.2, 0.2]
    found = space.recipe_at([0.0, 0.25, 1.0]).operands[0]
    for layer, weight in {1: 0.0, 3: 0.0, 4: 0.5, 7: 0.5, 8: 2.0, 10: 2.0, 11: 2.0}.items():
        assert found.weight_of(f"model.layers.{layer}.mlp.up_proj.weight") == weight
    with pytest.raises(RecipeError, match=r"per-layer groups: got 12, expected 1 to 11, the layers that operands\.0"):
        space_of(recipe, {"weights": (0.0, 2.0)}, per_layer=12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "linear"])
def test_a_candidate_in_memory_is_its_checkpoint(folder, tmp_path, method, dtype):
    """One after the other, as in a search: what an earlier candidate changed must not stay."""
    operands = [{"skill": str(folder / "a"), "weights": {"model.layers.0.*": 0.7, "default": 0.0}}]
    one = {"method": method, "base": str(folder / "target"), "operands": operands, "dtype": dtype}
    operands = [{"skill": str(folder / "b"), "weights": {"model.layers.1.*": 1.3, "default": 0.0}}]
    other = {**one, "operands": operands}
    metrics = ["f1", "answer_likelihood"]
    live = LiveModel(folder / "target", metrics, 4, 3, 1)
    from skillgraft.data.tasks import read_questions

    questions = read_questions(folder / "dev.jsonl")
    for number, recipe in enumerate([one, other, one]):
        found = live.score(parse_merge_recipe(recipe), questions)
        out = tmp_path / str(number)
        merge(recipe, out)
        stored = weights(out)
        held = live._model.state_dict()
        assert all(torch.equal(held[name], tensor.float()) for name, tensor in stored.items())
        expected = evaluate_checkpoint(out, questions, max_new_tokens=4, batch_size=3, retention=False)
        assert found["f1"] == expected["scores"]["f1"]
        fresh = LiveModel(out, metrics, 4, 3, 1)
        empty = parse_merge_recipe(
            {**one, "base": str(out), "operands": [{"skill": str(folder / "a"), "weight": 1e-30}]}
        )
        if method == "task_arithmetic":
            assert found["answer_likelihood"] == fresh.score(empty, questions)["answer_likelihood"]


def test_the_whole_path_with_a_model(folder, tmp_path):
    options = {"metric": {"answer_likelihood": 1.0, "f1": 0.1}, "trials": 4, "max_new_tokens": 2, "threads": 1}
    result = tune(
        folder / "merge.yaml", folder / "dev.jsonl", tmp_path, report_questions=folder / "report.jsonl", **options
    )
    assert result["winner"]["metrics"]["answer_likelihood"] < 0
    assert (tmp_path / "precision").read_text() == "fp32"
    scores = [row["score"] for row in trials(tmp_path)]
    assert len(set(scores)) == 4
    assert result["winner"]["score"] == max(scores)
    assert result["report"]["difference"]["low"] <= result["report"]["difference"]["high"]


def test_what_is_refused(folder, tmp_path):
    def refused(message, error=RecipeError, questions="dev.jsonl", **options):
        with pytest.raises(error, match=message):
            tune(options.pop("recipe", folder / "merge.yaml"), folder / questions, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refused(r"vary densty: task_arithmetic has no such number", vary={"densty": (0.0, 1.0)})
    ties = {"method": "ties", "base": folder / "target", "operands": [{"skill": folder / "a"}]}
    refused(r"vary densty: ties has no such number; did you mean 'density'", recipe=ties, vary={"densty": (0.1, 1.0)})
    refused(r"vary scope: ties has no such number", recipe=ties, vary={"scope": (0.1, 1.0)})
    refused(r"vary density: 0 is refused: Input should be greater than 0", recipe=ties, vary={"density": (0.0, 1.0)})
    refused(r"vary weights: got 1,1, expected two numbers, the smaller first", vary={"weights": (1.0, 1.0)})
    refused(r"vary weights: got nan,1, expected two numbers", vary={"weights": (math.nan, 1.0)})
    refused(
        r"the recipe's operands\.1\.weight is 1, which does not lie between 0 and 0\.8", vary={"weights": (0.0, 0.8)}
    )
    refused(
        r"per-layer groups were asked for, but weights do not vary",
        recipe=ties,
        vary={"density": (0.1, 1.0)},
        per_layer=1,
    )
    patterns = {**ties, "operands": [{"skill": folder / "a", "weights": {"default": 1.0}}]}
    refused(r"operands\.0 has weights by pattern already", recipe=patterns, per_layer=1)
    stock = {"method": "model_stock", "base": folder / "target", "operands": [{"skill": folder / n} for n in "ab"]}
    refused(r"vary weights: model_stock takes none", recipe=stock)
    refused(r"metric 'contains' is unknown; did you mean 'containment'", metric={"contains": 1.0})
    refused(r"metric f1: its weight is 0\.0", metric={"f1": 0.0})
    refused(r"by is 'cma'; did you mean 'cmaes'", by="cma")
    refused(r"trials is 2, expected 3 or more", trials=2)
    refused(
        r"report questions: 8 of 8 are among the development questions too",
        DataError,
        report_questions=folder / "dev.jsonl",
    )
    (folder / "empty.jsonl").write_text("\n")
    refused(r"holds none; expected a table", DataError, questions="empty.jsonl")


def test_an_algorithm_says_what_it_needs(folder, tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match=r"grid: 3 trials are left for 2 numbers, expected 4 or more"):
        run(folder, tmp_path / "grid", by="grid", trials=5)
    one = {"method": "ties", "base": folder / "target", "operands": [{"skill": folder / "a"}]}
    options = {"trials": 6, "scorer": lambda recipe, questions: {"f1": [recipe.operands[0].weight] * len(questions)}}
    with pytest.raises(RecipeError, match=r"cmaes needs two numbers to vary at least, got 1; take --by grid"):
        tune(one, folder / "dev.jsonl", tmp_path / "one", by="cmaes", **options)
    result = tune(one, folder / "dev.jsonl", tmp_path / "auto", **options)  # a grid by itself
    assert result["winner"]["values"] == {"operands.0.weight": 1.5}
    monkeypatch.setitem(__import__("sys").modules, "cma", None)
    with pytest.raises(RecipeError, match=r"cmaes needs the package cma: pip install 'skillgraft\[tune\]'"):
        run(folder, tmp_path / "cma")
    assert [path.name for path in tmp_path.iterdir()] == ["auto"]


def test_overlap_is_judged_by_question_and_answer(folder, tmp_path):
    """The same words about another document may ask something else; case and punctuation make no other question."""
    asked = [{"document": "x", "question": "when was it built", "answers": ["1900", "in 1900"]}]
    write_jsonl(tmp_path / "dev.jsonl", asked)
    write_jsonl(tmp_path / "other.jsonl", [{**asked[0], "document": "y", "answers": ["1950"]}])
    write_jsonl(tmp_path / "same.jsonl", [{**asked[0], "question": "When was it built?", "answers": ["In 1900."]}])
    options = {"scorer": bowl([0.9, 0.2]), "trials": 3}
    given = (folder / "merge.yaml", tmp_path / "dev.jsonl")
    tune(*given, tmp_path / "out", report_questions=tmp_path / "other.jsonl", **options)
    with pytest.raises(DataError, match=r"1 of 1 are among .* 'When was it built\?'"):
        tune(*given, tmp_path / "no", report_questions=tmp_path / "same.jsonl", **options)


def test_an_output_that_is_something_else(folder, tmp_path):
    run(folder, tmp_path / "out", trials=5)
    before = (tmp_path / "out/trials.jsonl").read_bytes()
    for change, name in (
        ({"seed": 3}, "seed was 0 and is 3 now"),
        ({"by": "random"}, "by was 'cmaes' and is 'random' now"),
        ({"metric": {"containment": 1.0}}, "metric was"),
        ({"vary": {"weights": (0.0, 1.2)}}, "vary was"),
        ({"max_new_tokens": 5}, "max_new_tokens was 32 and is 5"),
    ):
        with pytest.raises(OutputExistsError, match=re.escape(name)):
            run(folder, tmp_path / "out", trials=5, **change)
    assert (tmp_path / "out/trials.jsonl").read_bytes() == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("")
    with pytest.raises(OutputExistsError, match="exists already and holds no tuning run"):
        run(folder, tmp_path / "full", trials=5)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    with pytest.raises((OutputExistsError, StorageError)):
        run(folder, tmp_path / "full/thesis.txt", trials=5)
    with (
        open_log(tmp_path / "busy", {}),
        pytest.raises(StorageError, match="another process is tuning there"),
        open_log(tmp_path / "busy", {}),
    ):
        pass


def test_a_full_disk(folder, tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match=r"out: the disk is full"):
            run(folder, tmp_path / "out", trials=5)
    assert run(folder, tmp_path / "out", trials=5) == run(folder, tmp_path / "other", trials=5)


def test_a_damaged_log(folder, tmp_path):
    run(folder, tmp_path / "out", trials=5)
    for name, change in {
        "no trial": lambda lines: [*lines[:2], "{}", *lines[3:]],
        "trial 3, expected 2": lambda lines: [*lines[:2], *lines[3:]],
        "the libraries' versions differ": lambda lines: [*lines[:2], lines[2].replace('"point": [0.', '"point": [1.')],
    }.items():
        copy = shutil.copytree(tmp_path / "out", tmp_path / name[:4])
        lines = change((copy / "trials.jsonl").read_text().splitlines())
        (copy / "trials.jsonl").write_text("".join(f"{line}\n" for line in lines))
        with pytest.raises(CheckpointError, match=name):
            run(folder, copy, trials=5)


def test_skills_of_the_library(folder, tmp_path, monkeypatch):
    """A bare name is the library's skill, in `inject` too; the winner's recipe names its place."""
    monkeypatch.chdir(tmp_path)
    add_skill(folder / "a", "mine")
    recipe = {"method": "task_arithmetic", "base": str(folder / "target"), "operands": [{"skill": "mine"}]}
    options = {"trials": 4, "scorer": lambda recipe, questions: {"f1": [recipe.operands[0].weight] * len(questions)}}
    result = tune(recipe, folder / "dev.jsonl", tmp_path / "out", **options)
    assert result["winner"]["values"] == {"operands.0.weight": 1.5}
    merge(tmp_path / "out/best.yaml", tmp_path / "again")
    inject(folder / "target", [("mine", 1.5)], tmp_path / "injected")
    made, expected = weights(tmp_path / "again"), weights(tmp_path / "injected")
    assert all(torch.equal(made[name], expected[name]) for name in expected)
