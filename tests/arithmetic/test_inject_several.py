"""Several skills in one injection: the sums, the methods, what is recorded, what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillgraft.arithmetic import extract, inject, inject_scales, merge
from skillgraft.arithmetic.merge_recipe import parse_merge_recipe
from skillgraft.arithmetic.plan import check_number
from skillgraft.checkpoint import fingerprint_checkpoint, fingerprint_file, read_provenance
from skillgraft.errors import CheckpointError, CompatibilityError, MissingPathError, RecipeError
from tests.tiny import tiny_checkpoint, tiny_finetune, weights

NORM, Q_PROJ = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def skills(models, tmp_path_factory):
    """Two skills: one of every tensor, one of two tensors."""
    folder = tmp_path_factory.mktemp("skills")
    for seed, (name, tensors) in enumerate({"all": None, "two": [NORM, Q_PROJ]}.items(), start=11):
        rl = tiny_finetune(models / "sft", folder / f"rl-{name}", seed=seed, size=2e-3, names=tensors)
        extract(rl, models / "sft", folder / name)
    return folder


def test_the_sum_of_two_skills(models, skills, tmp_path):
    report = inject(models / "target", [(skills / "all", 0.5), (str(skills / "two"), -2)], tmp_path / "out", scale=3)
    target, made = weights(models / "target"), weights(tmp_path / "out")
    one, other = (load_file(skills / name / "skill.safetensors") for name in ("all", "two"))
    for name in target:
        change = 0.5 * one[name].double() - (2.0 * other[name].double() if name in other else 0.0)
        assert torch.equal(made[name], (target[name].double() + 3 * change).float())
    assert sorted(report["tensors"]) == sorted(target)
    assert report["tensors"][NORM]["norm"] == pytest.approx(
        3 * (0.5 * one[NORM].double() - 2 * other[NORM].double()).norm().item(), rel=1e-9
    )
    assert report["survived_rounding"] > 0.999
    assert "removal" not in report


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("ties", {"density": 0.3}),
        ("dare_ties", {"density": 0.5, "seed": 3}),
        ("dare", {"density": 0.5}),
        ("task_arithmetic", {}),
    ],
)
def test_every_method_is_the_merge(models, skills, tmp_path, method, parameters):
    pairs = [(skills / "all", 0.5), (skills / "two", 1.0)]
    inject(models / "target", pairs, tmp_path / "injected", method=method, parameters=parameters)
    operands = [{"skill": str(path), "weight": weight} for path, weight in pairs]
    recipe = {"method": method, "base": str(models / "target"), "operands": operands, "parameters": parameters}
    merge(recipe, tmp_path / "merged")
    one, other = weights(tmp_path / "injected"), weights(tmp_path / "merged")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_skill_with_its_scale_is_the_skill_at_that_scale(models, skills, tmp_path):
    inject(models / "target", [(skills / "all", 0.3)], tmp_path / "one")
    inject(models / "target", skills / "all", tmp_path / "other", scale=0.3)
    one, other = weights(tmp_path / "one"), weights(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_sweep_over_the_combination(models, skills, tmp_path):
    pairs = [(skills / "all", 0.5), (skills / "two", 1.0)]
    reports = inject_scales(models / "target", pairs, tmp_path / "sweep", [0, 0.5], method="ties")
    assert [report["scale"] for report in reports.values()] == [0.0, 0.5]
    inject(models / "target", pairs, tmp_path / "one", scale=0.5, method="ties")
    one, other = weights(tmp_path / "one"), weights(tmp_path / "sweep/scale-0.5")
    assert all(torch.equal(one[name], other[name]) for name in other)
    same, target = weights(tmp_path / "sweep/scale-0"), weights(models / "target")
    assert all(torch.equal(same[name], target[name]) for name in target)


def test_the_provenance_names_each_skill(models, skills, tmp_path):
    report = inject(models / "target", [(skills / "all", 0.5), (skills / "two", 1)], tmp_path / "out", method="ties")
    prints = {name: fingerprint_file(skills / name / "skill.safetensors") for name in ("all", "two")}
    given = [
        {"name": "all", "fingerprint": prints["all"], "scale": 0.5},
        {"name": "two", "fingerprint": prints["two"], "scale": 1.0},
    ]
    provenance = read_provenance(tmp_path / "out")
    assert provenance["made_by"]["skills"] == given == report["skills"]
    assert provenance["made_by"]["method"] == "ties"
    assert provenance["made_by"]["parameters"]["density"] == 0.2
    assert provenance["inputs"] == {
        "target": fingerprint_checkpoint(models / "target"),
        "skill0": prints["all"],
        "skill1": prints["two"],
    }
    assert str(models) not in json.dumps(provenance)  # no path of this machine is published with a model


def test_a_damaged_skill_among_several(models, skills, tmp_path):
    damaged = shutil.copytree(skills / "two", tmp_path / "damaged")
    tensors = load_file(damaged / "skill.safetensors")
    save_file({**tensors, NORM: tensors[NORM] * 1.01}, damaged / "skill.safetensors")
    with pytest.raises(CheckpointError, match=r"damaged: the delta of 'model\.norm\.weight' has norm .*is damaged"):
        inject(models / "target", [(skills / "all", 1), (damaged, 1)], tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"damaged: the delta of 'model\.norm\.weight' has norm .*is damaged"):
        inject(models / "target", [(damaged, 0.25)], tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"damaged: the delta of"):
        inject(models / "target", damaged, tmp_path / "out", method="ties")
    assert not (tmp_path / "out").exists()


def test_only_methods_that_can_are_offered(models, skills, tmp_path):
    with pytest.raises(RecipeError) as caught:
        inject(models / "target", skills / "all", tmp_path / "out", method="slerp")
    offered = str(caught.value).partition("available: ")[2].split(", ")
    assert "task_arithmetic" in offered
    for method in offered:
        check_number(parse_merge_recipe({"method": method, "base": "b", "operands": [{"skill": "a"}, {"skill": "c"}]}))


def test_each_skill_is_checked_against_the_target(models, skills, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=9)
    rl = tiny_finetune(other, tmp_path / "rl", seed=4)
    foreign = extract(rl, other, tmp_path / "foreign")
    with pytest.raises(CompatibilityError, match="looks like another base"):
        inject(models / "target", [(skills / "all", 1), (foreign, 1)], tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ([], {}, RecipeError, r"skill is an empty list"),
        (["skill"], {}, RecipeError, r"skill holds 'skill', expected pairs"),
        ([("skill", float("nan"))], {}, RecipeError, r"scale is nan, expected a finite number"),
        ([("skill", "1")], {}, RecipeError, r"scale is '1', expected a finite number"),
        ([("nowhere", 1)], {}, MissingPathError, r"nowhere: no such directory"),
        ("skill", {"method": "slerp"}, RecipeError, r"method 'slerp' can't combine skills.*available: .*dare"),
        ("skill", {"method": "instruction_residual"}, RecipeError, r"can't combine skills"),
        ("", {}, MissingPathError, "the name of a skill is empty"),
        ([("", 0.5)], {}, MissingPathError, "the name of a skill is empty"),
        ("skill", {"method": "tise"}, RecipeError, r"method 'tise' can't combine skills; did you mean 'ties'"),
        ("skill", {"method": "ties", "parameters": {"densty": 1}}, RecipeError, r"'parameters.densty'.*'density'"),
        ("skill", {"method": "ties", "parameters": {"density": 2}}, RecipeError, r"parameters.density is 2"),
        ("skill", {"method": "model_stock"}, RecipeError, r"model_stock got 1, expected at least 2"),
    ],
)
def test_what_is_refused(models, skills, tmp_path, given, options, error, message):
    with pytest.raises(error, match=message):
        inject(models / "target", given if given != "skill" else skills / "all", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
