"""Validation messages: pydantic's first error in the recipe's own words, with what to write instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from skillgraft.checkpoint.safe_read import shown
from skillgraft.errors import closest, did_you_mean
from skillgraft.settings.base import Settings

MUST = {
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "list_type": "a list",
    "string_type": "a text",
    "path_type": "a path",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
}
"""Kind of pydantic's error -> what the value must be."""


def explain(error: ValidationError, data: Any, recipe: type[Settings], kinds: Mapping[str, type[Settings]]) -> str:
    """Return what is wrong first with the recipe `data`, of which `recipe` is the class and `kinds` the stages'."""
    first = error.errors()[0]
    location = _written(first["loc"], data)
    model = recipe
    if location[:1] == ["stages"] and len(location) > 2:
        model = holder(kinds[data["stages"][location[1]]["kind"]], location[2:-1])
    return explain_at(error, location, model)


def explain_at(error: ValidationError, location: Sequence[str], model: type[Settings]) -> str:
    """Return what is wrong first, at the keys `location`, the last of which is one of `model`."""
    first, where = error.errors()[0], ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"unknown key '{where}'{did_you_mean(location[-1], _keys(model))}"
    if first["type"] == "missing":
        return f"'{where}' is missing{_instead(error, location[-1])}"
    got = "nothing" if first["input"] is None else shown(first["input"])
    return f"'{where}': {wording(first)}; got {got}"


def _instead(error: ValidationError, missing: str) -> str:
    """Return which unknown key stands where one is missing, and may be meant to be it."""
    beside = error.errors()[0]["loc"][:-1]
    unknown = [str(e["loc"][-1]) for e in error.errors() if e["type"] == "extra_forbidden" and e["loc"][:-1] == beside]
    if close := closest(missing, unknown):
        return f"; got '{close}', did you mean '{missing}'?"
    return f"; got '{unknown[0]}', which is no key there" if unknown else ""


def wording(first: Any) -> str:
    """Return what one of pydantic's errors says of a value: `must be …`."""
    if first["type"] in MUST:
        return f"must be {MUST[first['type']]}"
    if first["type"] == "too_short":
        least = first["ctx"]["min_length"]
        return f"must have at least {least} {'entry' if least == 1 else 'entries'}"
    message = first["msg"].removeprefix("Value error, ")
    return message.replace("Input should", "must", 1).replace("String should", "must", 1)


def _written(path: Sequence[int | str], data: Any) -> list[str]:
    """Return an error's path as a user wrote it: without the tags of unions, which are no keys of the data."""
    keys = []
    for part in path:
        known = isinstance(data, dict) and part in data
        if known or (isinstance(data, list) and isinstance(part, int)):
            data = data[part]
        elif part != path[-1] or not isinstance(data, dict):
            continue
        keys.append(str(part))
    return keys


def holder(model: type[Settings], location: Sequence[str]) -> type[Settings]:
    """Return the class of the mapping at `location` in a stage of the class `model`."""
    for name in location:
        model = _mapping_of(model.model_fields[name].annotation) if name in model.model_fields else model
    return model


def _keys(model: type[Settings]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _mapping_of(annotation: Any) -> type[Settings]:
    """Return the class of the mapping that a field may hold: the first in its annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((mapping for each in get_args(annotation) if (mapping := _mapping_of(each)) is not Settings), Settings)
