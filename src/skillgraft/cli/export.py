"""The verb `export` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skillgraft.cli.completion import complete_recipes
from skillgraft.errors import RecipeError
from skillgraft.support.output import print_or_write


def export(
    recipe: Annotated[
        Path, typer.Argument(help="Merge recipe (YAML).", show_default=False, autocompletion=complete_recipes)
    ],
    mergekit: Annotated[bool, typer.Option("--mergekit", help="Write the equivalent mergekit configuration.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; default: standard output.", show_default=False)
    ] = None,
) -> None:
    """Export a merge recipe to another tool's form, or say why there is no equivalent."""
    from skillgraft.arithmetic.merge_recipe import load_merge_recipe
    from skillgraft.arithmetic.mergekit import mergekit_yaml

    if not mergekit:
        raise RecipeError("no form was named; expected --mergekit")
    print_or_write(mergekit_yaml(load_merge_recipe(recipe)), out)
