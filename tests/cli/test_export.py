"""`skillgraft export --mergekit`: the exact configurations, each of which mergekit 0.1.5 was seen to accept."""

import shutil
from textwrap import dedent

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.cli.test_cli import fails, invoke
from tests.tiny import tiny_checkpoint

METHODS = (
    "linear",
    "task_arithmetic",
    "slerp",
    "ties",
    "dare",
    "dare_ties",
    "model_stock",
    "breadcrumbs",
    "ratatouille",
)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """A base in bf16; of checkpoints that are no base an export reads nothing."""
    folder = tmp_path_factory.mktemp("family").resolve()
    tiny_checkpoint(folder / "base", dtype=torch.bfloat16)
    shutil.copytree(folder / "base", folder / "b")
    return folder


@pytest.fixture
def recipe(family, tmp_path):
    """Write a recipe: two fine-tunes of `base` with weights, changed by what is given."""

    def write(**changes):
        operands = [{"model": str(family / "a"), "weight": 0.5}, {"model": str(family / "b"), "weight": 1.5}]
        data = {"method": "ties", "base": str(family / "base"), "operands": operands, **changes}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
        return tmp_path / "recipe.yaml"

    return write


def exported(file, *more):
    result = invoke("export", file, "--mergekit", *more)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


EXPORTED = {
    "linear": """
        merge_method: linear
        models:
        - model: {family}/base
          parameters:
            weight: 0.0
        - model: {family}/a
          parameters:
            weight: 0.5
        - model: {family}/b
          parameters:
            weight: 1.5
        parameters:
          normalize: true
        """,
    "task_arithmetic": """
        merge_method: task_arithmetic
        models:
        - model: {family}/a
          parameters:
            weight: 0.5
        - model: {family}/b
          parameters:
            weight: 1.5
        base_model: {family}/base
        parameters:
          normalize: false
        """,
    "slerp": """
        merge_method: slerp
        models:
        - model: {family}/a
        - model: {family}/b
        base_model: {family}/b
        parameters:
          t: 0.75
        """,
    "ties": """
        merge_method: ties
        models:
        - model: {family}/a
          parameters:
            weight: 0.5
            density: 0.3
        - model: {family}/b
          parameters:
            weight: 1.5
            density: 0.3
        base_model: {family}/base
        parameters:
          normalize: true
          lambda: 0.7
        """,
    "dare": """
        merge_method: dare_linear
        models:
        - model: {family}/a
          parameters:
            weight: 0.5
            density: 0.25
        - model: {family}/b
          parameters:
            weight: 1.5
            density: 0.25
        base_model: {family}/base
        parameters:
          normalize: false
          rescale: false
          lambda: 4.0
        """,
    "dare_ties": """
        merge_method: dare_ties
        models:
        - model: {family}/a
          parameters:
            weight: 0.5
            density: 0.25
        - model: {family}/b
          parameters:
            weight: 1.5
            density: 0.25
        base_model: {family}/base
        parameters:
          normalize: true
          rescale: false
          lambda: 4.0
        """,
    "model_stock": """
        merge_method: model_stock
        models:
        - model: {family}/a
        - model: {family}/b
        base_model: {family}/base
        """,
    "breadcrumbs": """
        merge_method: breadcrumbs
        models:
        - model: {family}/a
          parameters:
            weight: 0.5
            density: 0.144
            gamma: 0.006
        - model: {family}/b
          parameters:
            weight: 1.5
            density: 0.144
            gamma: 0.006
        base_model: {family}/base
        parameters:
          normalize: false
        """,
    "ratatouille": """
        merge_method: linear
        models:
        - model: {family}/base
          parameters:
            weight: 0.0
        - model: {family}/a
          parameters:
            weight: 0.5
        - model: {family}/b
          parameters:
            weight: 1.5
        parameters:
          normalize: true
        """,
}
PARAMETERS = {
    "slerp": {"t": 0.25},
    "ties": {"density": 0.3, "scope": "tensor", "scale": 0.7},
    "dare": {"density": 0.25, "seed": 3},
    "dare_ties": {"density": 0.25},
}


def plain(family, method):
    """What a recipe of a method needs beside what the fixture writes."""
    changes = {"method": method, "parameters": PARAMETERS.get(method, {})}
    if method in ("slerp", "model_stock"):
        changes["operands"] = [{"model": str(family / name)} for name in "ab"]
    if method == "slerp":
        changes["base"] = str(family / "b")  # at the second end, which mergekit counts from
    return changes


@pytest.mark.parametrize("method", METHODS)
def test_the_configuration(family, tmp_path, recipe, method):
    expected = dedent(EXPORTED[method]).lstrip().format(family=family)
    assert exported(recipe(**plain(family, method))) == expected + "dtype: float32\nout_dtype: bfloat16\n"
    wide = recipe(**plain(family, method), dtype="float64")
    assert exported(wide, "-o", tmp_path / "mk.yaml") == ""
    assert (tmp_path / "mk.yaml").read_text() == expected + "dtype: float64\nout_dtype: float64\n"


def test_adapters_and_a_base_under_another_name(family, tmp_path, recipe):
    (tmp_path / "link").symlink_to(family / "base")
    operands = [
        {"adapter": str(family / "adapter"), "weight": 0.5},
        {"model": str(family / "a"), "adapter": str(family / "adapter"), "minus": str(tmp_path / "link")},
    ]
    config = yaml.safe_load(exported(recipe(method="task_arithmetic", operands=operands)))
    names = [f"{family}/base+{family}/adapter", f"{family}/a+{family}/adapter"]
    assert [model["model"] for model in config["models"]] == names


def test_the_base_of_linear_comes_first(family, recipe):
    config = yaml.safe_load(exported(recipe(method="linear", base=str(family / "b"))))
    weights = [(model["model"], model["parameters"]["weight"]) for model in config["models"]]
    assert weights == [(f"{family}/b", 1.5), (f"{family}/a", 0.5)]  # its config and tokenizer are taken


def test_refused_where_mergekit_has_no_equivalent(family, tmp_path, recipe):
    def refusal(**changes):
        return fails("export", recipe(**changes), "--mergekit", "-o", tmp_path / "mk.yaml")

    a, b = {"model": str(family / "a")}, {"model": str(family / "b")}
    assert "scope 'model' has no mergekit equivalent: mergekit trims each tensor" in refusal()
    assert "pcb has no mergekit equivalent: mergekit 0.1.5 does not have the method" in refusal(method="pcb")
    skill = [{"skill": str(tmp_path / "skill")}]
    assert "operands.0: a skill has no mergekit equivalent" in refusal(method="task_arithmetic", operands=skill)
    minus = [a, {**b, "minus": str(family / "a")}]
    assert "operands.1: minus " in refusal(method="task_arithmetic", operands=minus)
    assert "a stands there twice" in refusal(method="task_arithmetic", operands=[a, b, a])
    assert "base is neither of the two models" in refusal(method="slerp", operands=[a, b])
    plus = [{"model": str(tmp_path / "a+b")}]
    assert "a+b holds + or @, which mergekit reads as" in refusal(method="task_arithmetic", operands=plus)
    mixed = shutil.copytree(family / "base", tmp_path / "mixed")
    tensors = load_file(mixed / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, mixed / "model.safetensors", metadata={"format": "pt"})
    assert "stores bfloat16 and float32" in refusal(method="task_arithmetic", base=str(mixed))
    assert not (tmp_path / "mk.yaml").exists()
