"""Merge recipes: as files, and every way in which they can be wrong."""

import os

import pytest
import torch
import yaml

from skillgraft.arithmetic import merge
from skillgraft.errors import MissingPathError, RecipeError
from tests.tiny import weights


def bad(family, tmp_path, error, match, **changes):
    data = {"method": "task_arithmetic", "base": family / "base", "operands": [{"model": family / "a"}], **changes}
    with pytest.raises(error, match=match):
        merge(data, tmp_path / "out")
    assert not [name for name in os.listdir(tmp_path) if "out" in name]


def test_recipes_that_are_wrong(family, tmp_path):
    def refused(match, error=RecipeError, **changes):
        bad(family, tmp_path, error, match, **changes)

    a = {"model": family / "a"}
    refused("method is 'tise'; did you mean 'ties'", method="tise")
    refused("unknown key 'operand'; did you mean 'operands'", operand=[])
    refused(r"unknown key 'operands.0.wieght'; did you mean 'weight'", operands=[{**a, "wieght": 1}])
    refused(r"unknown key 'parameters.desnity'; did you mean 'density'", method="ties", parameters={"desnity": 1})
    refused(
        "parameters.density is 1.5: input should be less than or equal to 1", method="dare", parameters={"density": 1.5}
    )
    refused("operands.0 names nothing", operands=[{"weight": 1}])
    refused("has minus without model", operands=[{"skill": "x", "minus": family / "a"}])
    refused("operands: slerp got 1, expected 2", method="slerp")
    refused("operands: model_stock takes no weights", method="model_stock", operands=[a, {**a, "weight": 0.5}])
    refused("linear takes models, not differences", method="linear", operands=[{**a, "minus": family / "b"}])
    refused("sum to 0; set parameters.normalize to false", method="linear", operands=[a, {**a, "weight": -1}])
    refused("no such directory", MissingPathError, operands=[{"model": family / "nowhere"}])
    refused(r"operands.0.skill is '': .*expected a directory \(. is the recipe's own\)", operands=[{"skill": ""}])
    refused(r"operands.0.minus is '': .*expected a directory", operands=[{**a, "minus": ""}])
    with pytest.raises(RecipeError, match="device 'cuda:99' is not there"):
        merge({"method": "linear", "base": family / "base", "operands": [a]}, tmp_path / "out", device="cuda:99")


def test_a_recipe_file_and_its_relative_paths(family, tmp_path):
    recipe = family / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"method": "linear", "base": "base", "operands": [{"model": "./a"}]}))
    merge(recipe, tmp_path / "out")
    assert all(torch.equal(weights(family / "a")[n], t) for n, t in weights(tmp_path / "out").items())
    with pytest.raises(MissingPathError, match="does not exist; expected a YAML file"):
        merge(family / "none.yaml", tmp_path / "x")
    recipe.write_text("- a list")
    with pytest.raises(RecipeError, match="holds a list, expected a mapping"):
        merge(recipe, tmp_path / "x")
