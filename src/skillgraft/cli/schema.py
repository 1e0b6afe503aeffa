"""The verb `schema` on the command line: the form of recipes, for editors."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from skillgraft.support.output import print_or_write


class Form(enum.StrEnum):
    """The two kinds of YAML file that Skillgraft reads."""

    recipe = "recipe"
    merge = "merge"


def schema(
    form: Annotated[Form, typer.Argument(help="recipe (skillgraft run) or merge (skillgraft merge).")] = Form.recipe,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; must not exist. Default: print it.")
    ] = None,
) -> None:
    """Print the JSON Schema of a recipe, for editors to complete and check it.

    Name it in the recipe's first line: # yaml-language-server: $schema=recipe.schema.json
    """
    from skillgraft.recipe.json_schema import SCHEMAS, schema_text

    print_or_write(schema_text(SCHEMAS[form.value]()), out)
