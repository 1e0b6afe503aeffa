"""Pages made from the code: all commands from their own help, fields of recipes from the classes that check them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

_EXAMPLE = re.compile(r"^Example: (.+)$", re.MULTILINE)
_STYLE = re.compile(r"\[/?(?:bold|dim)?\]")
_LIMITS = {
    "minimum": "≥ ",
    "maximum": "≤ ",
    "exclusiveMinimum": "> ",
    "exclusiveMaximum": "< ",
    "minItems": "at least ",
}


def commands_page() -> str:
    """Return the help of every verb as Markdown."""
    import typer
    from typer.cli import get_docs_for_click

    from skillgraft.cli.app import app

    group = typer.main.get_command(app)
    group.epilog = None  # its first steps are the tutorial's
    text = get_docs_for_click(obj=group, ctx=typer.Context(group, info_name="skillgraft"), name="skillgraft")
    text = _STYLE.sub("", text).replace("# `skillgraft`", "# Commands", 1)
    return _EXAMPLE.sub(lambda match: f"**Example**:\n\n```console\n$ {match[1]}\n```", text).rstrip() + "\n"


def recipe_page() -> str:
    """Return the fields of a recipe and of every kind of stage as Markdown."""
    from skillgraft.recipe.schema import Recipe
    from skillgraft.stages import KINDS

    head = (
        "# Recipe fields\n\nA recipe is a YAML file with the fields below, checked by `skillgraft run --dry-run` "
        "before anything runs; an unknown key is an error. Paths are relative to the recipe's folder. The JSON "
        "Schema, for editors, is [recipe.schema.json](../recipe.schema.json); `skillgraft schema` prints it.\n\n"
        "## Recipe\n"
    )
    forms = {name: kind.settings for name, kind in KINDS.items()}
    parts = [head, _table(Recipe), "## Stages\n\nEvery stage has a `kind`, which decides its other fields.\n"]
    for kind, form in forms.items():
        parts.append(f"### {kind}\n\n{form.__doc__}\n\n{_table(form)}")
    nested = {_words(each.__name__): each for form in forms.values() for each in _nested(form)}
    parts += [f"### {name}\n\n{form.__doc__}\n\n{_table(form)}" for name, form in nested.items()]
    return "\n".join(parts)


def merge_recipe_page() -> str:
    """Return the fields of a merge recipe and the parameters of every method as Markdown."""
    from skillgraft.arithmetic.merge_schema import MergeRecipe, OperandSpec
    from skillgraft.arithmetic.methods import all_methods

    head = (
        "# Merge recipe fields\n\nThe YAML file of `skillgraft merge`. Paths are relative to its folder. The JSON "
        "Schema, for editors, is [merge.schema.json](../merge.schema.json); `skillgraft schema merge` prints it.\n"
    )
    parts = [head, _table(MergeRecipe), f"## operand spec\n\n{OperandSpec.__doc__}\n\n{_table(OperandSpec)}"]
    parts.append("## Parameters by method\n")
    for name, method in all_methods().items():
        parts.append(f"### {name}\n\n{_table(method.parameters)}")
    return "\n".join(parts)


def _table(form: type[BaseModel]) -> str:
    schema = form.model_json_schema(by_alias=True)
    required = schema.get("required", [])
    if not schema.get("properties"):
        return "None.\n"
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        default = "required" if name in required else _default(field.get("default"))
        cells = (f"`{name}`", _type(field), default, field.get("description", ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if value is None or (isinstance(value, dict) and value):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(field: dict[str, Any]) -> str:
    """Return a field's type in words, with its limits."""
    if "$ref" in field:
        return f"[{_words(field['$ref'])}](#{_words(field['$ref']).replace(' ', '-')})"
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{each}`" for each in field["enum"])
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_type(each) for each in options if each.get("type") != "null")
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {_type(inner)}" if isinstance(inner, dict) and "type" in inner else "mapping"
    name = "path" if field.get("format") == "path" else str(field.get("type", "anything"))
    limits = [sign + str(field[key]) for key, sign in _LIMITS.items() if key in field]
    return ", ".join([name, *limits])


def _nested(form: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield each class that a field of `form` holds."""
    for field in form.model_fields.values():
        yield from _classes(field.annotation)


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _classes(inner)


def _words(name: str) -> str:
    """Return `ScaledSkill` as `scaled skill`."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name.rpartition("/")[2]).strip()
