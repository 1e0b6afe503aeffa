"""JSON Schemas of the recipe and of the merge recipe, made from the classes that check them. Loads no torch.

`docs/recipe.schema.json` and `docs/merge.schema.json` are these, for editors; a test holds them to the classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from skillgraft.arithmetic.merge_schema import MergeRecipe
from skillgraft.arithmetic.methods import all_methods
from skillgraft.recipe.schema import Recipe

DIALECT = "http://json-schema.org/draft-07/schema#"
"""Draft 7, which editors support best; the schemas use nothing newer."""


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe."""
    schema = _cleaned(Recipe.model_json_schema(by_alias=True))
    schema["properties"]["stages"]["additionalProperties"] = (
        False  # pydantic leaves names open that the pattern refuses
    )
    return {"$schema": DIALECT, **schema, "title": "Skillgraft recipe"}


def merge_schema() -> dict[str, Any]:
    """Return the JSON Schema of a merge recipe; `parameters` are those of the method that is named."""
    schema = _cleaned(MergeRecipe.model_json_schema(by_alias=True))
    schema["properties"]["method"]["enum"] = list(all_methods())
    schema["allOf"] = [
        {
            "if": {"properties": {"method": {"const": name}}},
            "then": {"properties": {"parameters": _cleaned(method.parameters.model_json_schema())}},
        }
        for name, method in all_methods().items()
    ]
    return {"$schema": DIALECT, **schema, "title": "Skillgraft merge recipe"}


def schema_text(schema: dict[str, Any]) -> str:
    """Return a schema as the text of a file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {"recipe": recipe_schema, "merge": merge_schema}


def _cleaned(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without the titles and the `null` defaults that pydantic adds: an editor would show them."""

    def clean(value: Any, holds_names: bool = False) -> Any:
        if isinstance(value, list):
            return [clean(each) for each in value]
        if not isinstance(value, dict):
            return value
        return {
            key: clean(each, key in {"properties", "$defs"} and not holds_names)
            for key, each in value.items()
            if holds_names or not (key == "title" or (key == "default" and each is None))
        }

    return clean(schema)
