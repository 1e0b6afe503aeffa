"""Reading a recipe: its YAML, `--set` overrides, rounds written out, references and settings checked. No torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from skillgraft.arithmetic.merge_recipe import check_vector_method, parse_merge_recipe
from skillgraft.distil_settings import DistilStage, MixStage, check_distil
from skillgraft.errors import RecipeError, closest, did_you_mean
from skillgraft.recipe.schema import (
    CHOICE,
    DATA,
    KINDS,
    MAKES,
    REFERENCES,
    WRITES_DATA,
    EvalStage,
    InjectStage,
    Recipe,
    RlStage,
    ScaledSkill,
    SftStage,
    is_path,
    order,
    references,
)
from skillgraft.recipe.validation_messages import explain, explain_at, holder
from skillgraft.refine_settings import RefineStage, rounds_of
from skillgraft.rl_settings import check_rl
from skillgraft.self_edit_settings import SelfEditStage, check_self_edit
from skillgraft.settings.base import BASE, Strict, changed
from skillgraft.settings.evaluation import EvalRow, RetentionSettings, check_eval
from skillgraft.settings.synthesis import SynthesizeStage, check_synthesize
from skillgraft.settings.text import ReplaySettings, check_sft
from skillgraft.single_passage_settings import RowSkill, SinglePassageStage, check_single_passage
from skillgraft.support.yaml_file import read_yaml


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
    recipe = _with_rounds(parse_recipe(data, str(file)), str(file))
    recipe = _absolute_paths(recipe, file.resolve().parent)
    order(recipe)
    _check_stages(recipe)
    return recipe


def parse_recipe(data: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Return the validated recipe of a mapping; `RecipeError` names the first wrong key or value."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {explain(error, data, Recipe, KINDS)}") from error


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


def _with_rounds(recipe: Recipe, where: str) -> Recipe:
    """Return the recipe with the stages of its rounds in the place of every `refine` entry."""
    stages: dict[str, Any] = {}
    for name, stage in recipe.stages.items():
        if not isinstance(stage, RefineStage):
            stages[name] = stage
            continue
        for made, (place, settings) in rounds_of(name, stage).items():
            if made != name and made in recipe.stages:
                raise RecipeError(f"stages.{made}: the refine stage '{name}' makes a stage of this name; rename one")
            model = KINDS[settings["kind"]]
            try:
                stages[made] = model.model_validate(settings)
            except ValidationError as error:
                keys = [str(part) for part in error.errors()[0]["loc"]]
                said = explain_at(error, [*place.split("."), *keys], holder(model, keys[:-1]))
                raise RecipeError(f"{where}: {said}") from error
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
    except yaml.YAMLError as error:
        raise RecipeError(f"--set: the value of '{path}' is not YAML: {text!r}") from error


def _check_stage_named(name: str, stages: Mapping[str, Any]) -> None:
    """Raise for an override of a stage that is not there, or is one of those that a `refine` entry stands for."""
    if name in stages:
        return
    made: dict[str, str] = {}
    for entry, settings in stages.items():
        if isinstance(settings, dict) and settings.get("kind") == "refine":
            with contextlib.suppress(ValidationError, RecipeError):  # an entry that is wrong is reported later
                rounds = rounds_of(entry, RefineStage.model_validate(settings))
                made |= {stage: place for stage, (place, _) in rounds.items()}
    if name in made:
        raise RecipeError(
            f"--set: '{name}' is one of the stages that a refine stage stands for; set {made[name]}, which decides it "
            "in every round"
        )
    raise RecipeError(f"--set: there is no stage '{name}'{did_you_mean(name, {*stages, *made})}")


def _check_stages(recipe: Recipe) -> None:
    """Raise for an sft stage without data, and an eval stage whose `baseline` or `labels` name none of its models."""
    for name, stage in recipe.stages.items():
        if isinstance(stage, SftStage):
            check_sft(name, stage)
        for field in CHOICE:
            if isinstance(stage, SftStage) and field == "limit_documents":
                continue  # check_sft's, since about has it too
            if getattr(stage, field, None) is not None and getattr(stage, "documents", None) is None:
                raise RecipeError(f"stages.{name}: {field} needs documents")
        if isinstance(stage, InjectStage):
            _check_inject(name, stage)
        if isinstance(stage, SynthesizeStage):
            check_synthesize(name, stage)
        if isinstance(stage, SinglePassageStage):
            check_single_passage(name, stage)
        if isinstance(stage, DistilStage | MixStage):
            check_distil(name, stage)
        if isinstance(stage, SelfEditStage):
            check_self_edit(name, stage)
        _check_makers(recipe, name, stage)
        if isinstance(stage, RlStage):
            check_rl(name, stage)
        if not isinstance(stage, EvalStage):
            continue
        check_eval(name, stage)
        for field, named in (("baseline", [stage.baseline] if stage.baseline else []), ("labels", list(stage.labels))):
            for model in named:
                if model not in stage.models:
                    raise RecipeError(
                        f"stages.{name}.{field}: '{model}' is no model of it{did_you_mean(model, stage.models)}"
                    )
        for model in stage.models:
            if stage.models.count(model) > 1:
                raise RecipeError(f"stages.{name}.models: '{model}' stands there twice; name each model once")


def _check_inject(name: str, stage: InjectStage) -> None:
    """Raise for an inject stage that names no skill, or one and several, or a method that it can't take."""
    if (stage.skill is None) != bool(stage.skills):
        got = "both are given" if stage.skills else "neither is given"
        raise RecipeError(f"stages.{name}: {got}, skill or skills; inject needs one of them")
    if stage.scales is not None and (stage.skills or stage.method != "task_arithmetic"):
        raise RecipeError(f"stages.{name}.scales: λ by pattern is for one skill, added as it is; leave scales out")
    if stage.method == "task_arithmetic" and not stage.parameters:
        return
    from skillgraft.arithmetic.plan import check_number

    operands = [{"skill": skill, "weight": scale} for skill, scale in stage.injected]
    data = {"method": stage.method, "base": stage.target, "operands": operands, "parameters": stage.parameters}
    check_vector_method(stage.method, f"stages.{name}: ")
    check_number(parse_merge_recipe(data, f"stages.{name}"))


def _check_makers(recipe: Recipe, name: str, stage: Strict) -> None:
    """Raise for a reference to a stage that makes something else than what is needed there."""
    for field, reference in references(stage):
        if reference in recipe.stages and field not in DATA:
            wanted = "skill" if field in ("skill", "skills") else "checkpoint"
            made = MAKES[recipe.stages[reference].kind]
            if made != wanted:
                raise RecipeError(f"stages.{name}.{field}: '{reference}' makes a {made}, expected a {wanted}")


def _skill_place(name: str, folder: Path) -> str | None:
    """Return the directory that a bare name of a skill means: beside the recipe, in the library, or shipped."""
    from skillgraft.skills.library import named_skill

    place = folder / name if os.path.isdir(folder / name) else named_skill(name)
    return str(place.absolute()) if place else None


def _absolute_paths(recipe: Recipe, folder: Path) -> Recipe:
    def absolute(value: Any, field: str) -> Any:
        if isinstance(value, list):
            return [absolute(each, field) for each in value]
        if isinstance(value, ReplaySettings):
            return value.model_copy(update={"text": absolute(value.text, "replay")})
        if isinstance(value, EvalRow | RetentionSettings):
            return changed(value, {name: absolute(getattr(value, name), name) for name in type(value).model_fields})
        if not isinstance(value, Path):
            return value
        if field in DATA and isinstance(recipe.stages.get(str(value)), WRITES_DATA):
            return value
        return (folder / value.expanduser()).resolve()

    def resolve_reference(value: Any, is_base: bool = False, is_skill: bool = False) -> Any:
        if isinstance(value, list):
            return [resolve_reference(each, is_skill=is_skill) for each in value]
        if isinstance(value, ScaledSkill | RowSkill):
            return value.model_copy(update={"skill": resolve_reference(value.skill, is_skill=True)})
        if isinstance(value, EvalRow):
            return value.model_copy(update={"model": resolve_reference(value.model)})
        if isinstance(value, str) and value not in (*recipe.stages, BASE) and (is_path(value) or is_base):
            if is_base and not value.startswith((".", "~", "/")) and not (folder / value).is_dir():
                return value  # a hub id
            return str((folder / Path(value).expanduser()).resolve())
        if is_skill and value and value not in (*recipe.stages, BASE):
            return _skill_place(value, folder) or value
        return value

    stages = {}
    for name, stage in recipe.stages.items():
        changes = {f: absolute(getattr(stage, f), f) for f in type(stage).model_fields}
        changes |= {f: resolve_reference(changes[f], is_skill=f.startswith("skill")) for f in REFERENCES[stage.kind]}
        if isinstance(stage, EvalStage):
            changes["labels"] = {resolve_reference(model): label for model, label in stage.labels.items()}
            changes["baseline"] = resolve_reference(stage.baseline)
        stages[name] = changed(stage, changes)
    return recipe.model_copy(update={"stages": stages, "base": resolve_reference(recipe.base, is_base=True)})
