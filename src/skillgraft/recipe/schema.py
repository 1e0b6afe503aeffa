"""The recipe: named stages that refer to each other, and the order in which they run. Loads no torch."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.settings.base import BASE, DataPath, Ref, Settings, is_path, references, sites
from skillgraft.stages import KINDS

if TYPE_CHECKING:
    Stage = Any
else:
    Stage = Annotated[reduce(or_, (kind.settings for kind in KINDS.values())), Field(discriminator="kind")]


class Recipe(Settings):
    """A whole recipe, as `recipe.load.load_recipe` returns it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run's folder under runs/")
    base: str = Field(description="the pre-trained model: directory, .gguf file or hub id; stages call it 'base'")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything that is random")
    title: str | None = Field(None, description="the report's heading")
    stages: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Stage] = Field(
        min_length=1, description="stages by name, in any order: each runs after those that it refers to"
    )


def order(recipe: Recipe) -> list[str]:
    """Return the stage names so that each comes after those it refers to, otherwise in the file's order.

    Raises:
        RecipeError: a reference to a stage that is not there, or a cycle, with its members.
    """
    for name, stage in recipe.stages.items():
        _check_references(recipe, name, stage)
    done: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in done or name not in recipe.stages:
            return
        if name in path:
            cycle = " -> ".join([*path[path.index(name) :], name])
            raise RecipeError(f"stages refer to each other in a cycle: {cycle}; one of them must start from elsewhere")
        path.append(name)
        for _, reference in references(recipe.stages[name]):
            visit(reference)
        path.pop()
        done.append(name)

    for name in recipe.stages:
        visit(name)
    return done


NOUNS = {"documents": "folder of documents", "questions": "set of questions"}
"""Result of a stage kind -> its name in messages."""


def _check_references(recipe: Recipe, name: str, stage: Settings) -> None:
    """Raise for a name of no stage."""
    from skillgraft.skills.library import skill_names

    for field, marker, reference in sites(stage, Ref):
        if marker.among is None and reference != BASE and reference not in recipe.stages and not is_path(reference):
            skills = skill_names() if marker.makes == "skill" else ()
            hint = did_you_mean(reference, [*recipe.stages, BASE, *skills])
            raise RecipeError(f"stages.{name}.{field}: there is no stage '{reference}'{hint}; a path needs a slash")


def check_makers(recipe: Recipe, name: str) -> None:
    """Raise where a stage refers to one that makes something else than what is needed there."""
    stage = recipe.stages[name]
    for field, marker, reference in sites(stage, Ref):
        if reference in recipe.stages and (result := KINDS[recipe.stages[reference].kind].makes) != marker.makes:
            noun = NOUNS.get(result, result)
            raise RecipeError(f"stages.{name}.{field}: '{reference}' makes a {noun}, expected a {marker.makes}")


def check_data_stages(recipe: Recipe, name: str) -> None:
    """Raise where a stage reads documents or questions of a stage that writes none."""
    for field, marker, path in sites(recipe.stages[name], DataPath):
        source = recipe.stages.get(str(path))
        if marker.makes is None or source is None:
            continue
        kind = KINDS[source.kind]
        if marker.makes in kind.writes(source):
            continue
        if kind.makes == "questions":
            raise RecipeError(f"stages.{name}.{field}: '{path}' makes questions, no documents")
        raise RecipeError(f"stages.{name}.{field}: the styles of '{path}' make no {field}")
