"""Load a recipe: YAML, `--set` overrides, expansion of entries, references and settings checked. Loads no torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from skillgraft.errors import RecipeError, closest, did_you_mean
from skillgraft.recipe.schema import Recipe, check_makers, order
from skillgraft.recipe.validation_messages import explain, explain_at, holder
from skillgraft.settings.base import BASE, Chooses, DataPath, Ref, Settings, is_path, replaced, sites
from skillgraft.stages import KINDS
from skillgraft.support.yaml_file import check_plain, read_yaml

SETTINGS = {name: kind.settings for name, kind in KINDS.items()}


def load_recipe(file: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Return the recipe in `file` with `--set` overrides applied, paths made absolute, references checked.

    Raises:
        MissingPathError: no such file.
        RecipeError: not YAML, an unknown or missing key, a wrong value, a reference to a missing stage, a cycle.
    """
    data = read_yaml(file, "recipe", "name, base, stages")
    for override in overrides:
        _apply_override(data, override)
    _check_kinds(data)
    recipe = _expanded(parse_recipe(data, str(file)), str(file))
    recipe = _absolute_paths(recipe, file.resolve().parent)
    order(recipe)
    for name, stage in recipe.stages.items():
        KINDS[stage.kind].check(name, stage)
        _check_choices(name, stage)
        check_makers(recipe, name)
    return recipe


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Return the validated recipe of a mapping; `RecipeError` names the first wrong key or value."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {explain(error, data, Recipe, SETTINGS)}") from error


def _check_kinds(data: Mapping[str, Any]) -> None:
    """Raise for what pydantic's messages would explain badly: stages that are no mappings, unknown kinds."""
    stages = data.get("stages")
    if not isinstance(stages, dict):
        return
    for name, stage in stages.items():
        if name == BASE:
            raise RecipeError("stages.base: 'base' names the recipe's base model; call the stage something else")
        if not isinstance(stage, dict):
            raise RecipeError(f"stages.{name}: got {stage!r}, expected a mapping with kind and its settings")
        kind = stage.get("kind")
        if kind is None:
            got = f"; got '{close}', did you mean 'kind'?" if (close := closest("kind", map(str, stage))) else ""
            raise RecipeError(f"stages.{name}: 'kind' is missing{got or '; expected one of ' + ', '.join(KINDS)}")
        if not isinstance(kind, str) or kind not in KINDS:
            raise RecipeError(f"stages.{name}.kind: '{kind}' is not a kind of stage{did_you_mean(str(kind), KINDS)}")


def _expanded(recipe: Recipe, where: str) -> Recipe:
    """Return the recipe with the stages that an entry stands for in its place."""
    stages: dict[str, Any] = {}
    for name, stage in recipe.stages.items():
        expand = KINDS[stage.kind].expand
        if expand is None:
            stages[name] = stage
            continue
        for stage_name, (place, settings) in expand(name, stage).items():
            if stage_name != name and stage_name in recipe.stages:
                raise RecipeError(
                    f"stages.{stage_name}: the {stage.kind} stage '{name}' makes a stage of this name; rename one"
                )
            model = SETTINGS[settings["kind"]]
            try:
                stages[stage_name] = model.model_validate(settings)
            except ValidationError as error:
                keys = [str(part) for part in error.errors()[0]["loc"]]
                message = explain_at(error, [*place.split("."), *keys], holder(model, keys[:-1]))
                raise RecipeError(f"{where}: {message}") from error
    return recipe.model_copy(update={"stages": stages})


def _apply_override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set: got '{override}', expected a.b=c, such as stages.grafted.scale=0.5")
    if isinstance(stages := data.get("stages"), dict):
        if keys[0] not in Recipe.model_fields and (len(keys) > 1 or keys[0] in stages):
            keys = ["stages", *keys]
        if keys[0] == "stages" and len(keys) > 1:
            _check_stage_named(keys[1], stages)
    here = data
    for key in keys[:-1]:
        inner = here.get(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set: '{path}' goes into '{key}', which is no mapping")
        here[key] = dict(inner)  # another stage may name the same mapping by a YAML alias
        here = here[key]
    try:
        here[keys[-1]] = yaml.safe_load(text)
        check_plain(here[keys[-1]], "--set", path)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set: the value of '{path}' is not YAML: {text!r}") from error


def _check_stage_named(name: str, stages: Mapping[str, Any]) -> None:
    """Raise for an override of a stage that is not there, or is one of those that a `refine` entry stands for."""
    if name in stages:
        return
    expanded_stages: dict[str, tuple[str, str]] = {}
    for entry, settings in stages.items():
        kind = KINDS.get(str(settings.get("kind"))) if isinstance(settings, dict) else None
        if kind is not None and kind.expand is not None:
            with contextlib.suppress(ValidationError, RecipeError):  # an entry that is wrong is reported later
                expanded = kind.expand(entry, kind.settings.model_validate(settings))
                expanded_stages |= {stage: (kind.name, place) for stage, (place, _) in expanded.items()}
    if name in expanded_stages:
        kind_name, place = expanded_stages[name]
        raise RecipeError(
            f"--set: '{name}' is one of the stages that a {kind_name} stage stands for; set {place}, which decides it "
            "in every round"
        )
    raise RecipeError(f"--set: there is no stage '{name}'{did_you_mean(name, {*stages, *expanded_stages})}")


def _check_choices(name: str, stage: Settings) -> None:
    """Raise for a field that chooses among data which is not given."""
    for field, marker, _ in sites(stage, Chooses):
        if all(getattr(stage, each) is None for each in marker.of):
            raise RecipeError(f"stages.{name}: {field} needs {', or '.join(marker.of)}")


def _skill_place(name: str, folder: Path) -> str | None:
    """Return the directory that a bare name of a skill means: beside the recipe, in the library, or shipped."""
    from skillgraft.skills.library import named_skill

    place = folder / name if os.path.isdir(folder / name) else named_skill(name)
    return str(place.absolute()) if place else None


def _usable(folder: Path, text: str) -> Path:
    """Return a recipe's path, absolute; `RecipeError` for one that no file can have or that may not be looked at."""
    try:
        path = (folder / Path(text).expanduser()).resolve()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        shown = text if len(text) <= 60 else f"{text[:57]}…"
        raise RecipeError(f"the path '{shown}' cannot be used: {reason}; name another") from error
    return path


def _absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with paths and references resolved against its folder; names of stages stay names."""

    def resolved(marker: Any, value: Any) -> Any:
        if isinstance(marker, Ref):
            return reference(value, marker.makes == "skill")
        if not isinstance(marker, DataPath):
            return value
        source = recipe.stages.get(str(value)) if marker.makes is not None else None
        if source is not None and KINDS[source.kind].makes in ("documents", "questions"):
            return value
        return _usable(folder, str(value))

    def reference(value: str, is_skill: bool) -> str:
        if value in (*recipe.stages, BASE):
            return value
        if is_path(value):
            return str(_usable(folder, value))
        return (_skill_place(value, folder) or value) if is_skill and value else value

    base = recipe.base
    if base.startswith((".", "~", "/")) or _usable(folder, base).is_dir():  # anything else is a hub id
        base = str(_usable(folder, base))
    stages = {name: replaced(stage, resolved) for name, stage in recipe.stages.items()}
    return recipe.model_copy(update={"stages": stages, "base": base})
