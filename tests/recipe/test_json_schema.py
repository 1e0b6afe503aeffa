"""The published schemas are those of the classes, and say of a recipe what the classes say."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from skillgraft.arithmetic.merge_schema import MergeRecipe, OperandSpec
from skillgraft.arithmetic.methods import METHODS
from skillgraft.cli.app import app
from skillgraft.recipe.json_schema import SCHEMAS, merge_schema, recipe_schema, schema_text
from skillgraft.recipe.schema import Recipe
from skillgraft.stages import KINDS

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_current(name):
    file = ROOT / "docs" / f"{name}.schema.json"
    command = f"skillgraft schema {name} > docs/{name}.schema.json"
    assert file.read_text(encoding="utf-8") == schema_text(SCHEMAS[name]()), f"run: {command}"


def valid(schema, value, root=None):
    """A small validator of the keywords that the schemas use; any other keyword fails."""
    root = root or schema
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    for key, rule in sorted(schema.items(), key=lambda item: item[0] != "type"):  # other keywords presume the type
        match key:
            case "$ref":
                node = root
                for part in rule.removeprefix("#/").split("/"):
                    node = node[part]
                good = valid(node, value, root)
            case "type":
                good = value is None if rule == "null" else isinstance(value, types[rule])
                good = good and (rule == "boolean" or not isinstance(value, bool))
            case "anyOf" | "oneOf":
                matches = sum(valid(each, value, root) for each in rule)
                good = matches >= 1 if key == "anyOf" else matches == 1
            case "allOf":
                good = all(valid(each, value, root) for each in rule)
            case "if":
                good = not valid(rule, value, root) or valid(schema["then"], value, root)
            case "enum":
                good = value in rule
            case "const":
                good = value == rule
            case "required":
                good = set(rule) <= set(value)
            case "properties":
                good = all(valid(each, value[name], root) for name, each in rule.items() if name in value)
            case "patternProperties":
                good = all(
                    valid(each, value[name], root)
                    for regex, each in rule.items()
                    for name in value
                    if re.search(regex, name)
                )
            case "additionalProperties":
                known = [*map(re.escape, schema.get("properties", {})), *schema.get("patternProperties", {})]
                rest = [each for name, each in value.items() if not any(re.search(f"^{k}$", name) for k in known)]
                good = not rest if rule is False else rule is True or all(valid(rule, each, root) for each in rest)
            case "propertyNames":
                good = all(valid(rule, name, root) for name in value)
            case "items":
                good = all(valid(rule, each, root) for each in value)
            case "pattern":
                good = re.search(rule, value) is not None
            case "minItems" | "minProperties":
                good = len(value) >= rule
            case "minimum":
                good = value >= rule
            case "exclusiveMinimum":
                good = value > rule
            case "maximum":
                good = value <= rule
            case "exclusiveMaximum":
                good = value < rule
            case "$schema" | "$defs" | "title" | "description" | "default" | "format" | "discriminator" | "then":
                good = True
            case _:
                raise AssertionError(f"the schema uses '{key}', which this test does not know")
        if not good:
            return False
    return True


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_every_shipped_recipe_is_valid_and_names_the_schema(file):
    assert valid(recipe_schema(), yaml.safe_load(file.read_text()))
    named = re.search(r"^# yaml-language-server: \$schema=(\S+)$", file.read_text(), re.MULTILINE)
    assert (file.parent / named[1]).resolve() == ROOT / "docs" / "recipe.schema.json"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"nam": "x"},
        {"name": "../x"},
        {"stages": {}},
        {"stages": {"a b": {"kind": "sft", "from": "base", "documents": "d"}}},
        {"stages": {"a": {"kind": "stf", "from": "base"}}},
        {"stages": {"a": {"kind": "sft", "form": "base"}}},
        {"stages": {"a": {"kind": "sft", "from_": "base"}}},
        {"stages": {"a": {"kind": "eval", "models": [], "questions": "q"}}},
        {"stages": {"a": {"kind": "inject", "target": "base", "skill": "s", "scale": "much"}}},
    ],
)
def test_wrong_recipes_are_not(change):
    good = {"name": "x", "base": "b", "stages": {"a": {"kind": "sft", "from": "base", "documents": "d"}}}
    assert valid(recipe_schema(), good)
    assert not valid(recipe_schema(), {**good, **change})


def test_merge_recipes():
    good = {"method": "ties", "base": "b", "operands": [{"model": "m"}], "parameters": {"density": 0.5}}
    assert valid(merge_schema(), good)
    assert not valid(merge_schema(), {**good, "method": "tie"})
    assert not valid(merge_schema(), {**good, "parameters": {"t": 0.5}})
    assert valid(merge_schema(), {**good, "method": "slerp", "parameters": {"t": 0.5}})
    assert not valid(merge_schema(), {**good, "operands": [{"modl": "m"}]})
    assert not valid(merge_schema(), {**good, "operands": []})


@pytest.mark.parametrize(
    "form",
    [
        Recipe,
        *(kind.settings for kind in KINDS.values()),
        MergeRecipe,
        OperandSpec,
        *(method.parameters for method in METHODS.values()),
    ],
    ids=lambda form: form.__name__,
)
def test_every_field_is_described(form):
    assert [name for name, field in form.model_fields.items() if not field.description] == []


def test_the_verb(tmp_path):
    out = tmp_path / "s.json"
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == recipe_schema()
    assert json.loads(CliRunner().invoke(app, ["schema", "merge"]).stdout) == merge_schema()
    assert CliRunner().invoke(app, ["schema", "-o", str(out)]).exit_code == 0
    assert json.loads(out.read_text()) == recipe_schema()
    again = CliRunner().invoke(app, ["schema", "merge", "-o", str(out)])
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    nowhere = CliRunner().invoke(app, ["schema", "-o", str(tmp_path / "no" / "s.json")])
    assert (nowhere.exit_code, "cannot be written" in nowhere.stderr) == (2, True)
