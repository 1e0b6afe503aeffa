"""Reading a merge recipe: a YAML file or a mapping, checked and with its paths resolved. Loads no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from skillgraft.arithmetic.merge_schema import MergeRecipe, OperandSpec
from skillgraft.arithmetic.methods import all_methods, get_method
from skillgraft.errors import RecipeError, did_you_mean, naming
from skillgraft.support.yaml_file import read_yaml


def check_vector_method(method: str, where: str = "") -> None:
    """Raise `RecipeError` for a method that does not make one change of several skills."""
    usable = [name for name, each in all_methods().items() if each.inputs == "vectors" and each.takes_skills]
    if method not in usable:
        raise RecipeError(f"{where}method {method!r} can't combine skills{did_you_mean(str(method), usable)}")


def load_merge_recipe(file: Path) -> MergeRecipe:
    """Return the checked recipe in a YAML file; `MissingPathError` or `RecipeError` names what is wrong."""
    return parse_merge_recipe(load_merge_data(file), str(file), file.resolve().parent)


def load_merge_data(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, not yet checked."""
    return read_yaml(file, "merge recipe", "method, base, operands")


def parse_merge_recipe(data: dict[str, Any], where: str = "merge recipe", folder: Path | None = None) -> MergeRecipe:
    """Return the checked recipe of a mapping, relative paths taken from `folder`; `RecipeError` for what is wrong."""
    with naming(where):
        method = get_method(data.get("method"))
    try:
        recipe = MergeRecipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error, [])}") from error
    raw = recipe.parameters or {}
    if not isinstance(raw, dict):
        raise RecipeError(f"{where}: parameters is {raw!r}, expected a mapping")
    if raw and not method.parameters.model_fields:
        key = next(iter(raw))
        having = [name for name, each in all_methods().items() if key in each.parameters.model_fields]
        hint = f"; {', '.join(having)} have it" if having else ""
        raise RecipeError(f"{where}: unknown key 'parameters.{key}': {method.name} takes no parameters{hint}")
    try:
        parameters = method.parameters.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error, ['parameters'], method.parameters)}") from error
    folder = folder or Path()
    operands = [
        operand.model_copy(
            update={
                **{key: _under(folder, getattr(operand, key)) for key in ("model", "adapter", "minus")},
                "skill": _skill(folder, operand.skill),
            }
        )
        for operand in recipe.operands
    ]
    return recipe.model_copy(
        update={"parameters": parameters, "operands": operands, "base": _under(folder, recipe.base)}
    )


def _skill(folder: Path, path: Path | None) -> Path | None:
    """Return a skill's path under `folder`, or a bare name as it is where nothing there has it: the library may."""
    under = _under(folder, path)
    if path is None or under is None or os.path.lexists(under) or len(path.parts) != 1:
        return under
    return path


def _under(folder: Path, path: Path | None) -> Path | None:
    if path is None:
        return None
    if "\0" in str(path):
        raise RecipeError(f"path {str(path)!r} holds a NUL byte; expected the path of a directory")
    try:
        return folder / path.expanduser()
    except RuntimeError as error:  # ~nobody
        raise RecipeError(f"path {path}: {error}; write it out") from error


def _explain(error: ValidationError, above: list[str], form: type[BaseModel] | None = None) -> str:
    first = error.errors()[0]
    location = [*above, *(str(part) for part in first["loc"])]
    where = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = form or (OperandSpec if location[0] == "operands" and len(location) > 1 else MergeRecipe)
        return f"unknown key '{where}'{did_you_mean(location[-1], known.model_fields)}"
    if first["type"] == "missing":
        return f"'{where}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    got = first["input"] if isinstance(first["input"], str | int | float | bool | None) else None
    return f"{where} {message}" if got is None else f"{where} is {got!r}: {message[0].lower()}{message[1:]}"
