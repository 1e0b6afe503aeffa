"""The recipe: a YAML file of named stages that refer to each other, checked before anything runs. Loads no torch.

    name: past-squad
    base: HuggingFaceTB/SmolLM2-135M-Instruct
    seed: 0
    stages:
      sft_target: {kind: sft, from: base, documents: data/target}
      grafted:    {kind: inject, target: sft_target, skill: squad-recall, scale: 1.0}

Relative paths are relative to the recipe's own folder. A skill of the library, or one that comes with Skillgraft, is
named by its name (`skill: squad-recall`), unless a stage or a directory beside the recipe has that name. `trainer:` and
`lora:` go unchanged into TRL's and PEFT's own config classes, which are checked for unknown keys when the run is
planned.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError

from skillgraft.arithmetic.merge_recipe import check_vector_method, parse_merge_recipe
from skillgraft.distil_settings import DistilStage, MixStage, check_distil
from skillgraft.errors import RecipeError, closest, did_you_mean
from skillgraft.evaluation_settings import EvalRow, RetentionField, RetentionSettings, check_eval
from skillgraft.explain import explain, explain_at, holder
from skillgraft.refine_settings import RefineStage, rounds_of
from skillgraft.regime_settings import WHOLE, ReplaySettings, TextSettings, check_sft
from skillgraft.rl_settings import Part, RlChoices, check_rl
from skillgraft.self_edit_settings import SelfEditStage, check_self_edit
from skillgraft.single_passage_settings import RowSkill, SinglePassageStage, check_single_passage
from skillgraft.strict import BASE, changed
from skillgraft.strict import Strict as _Strict
from skillgraft.synthesis_settings import SynthesizeStage, check_synthesize
from skillgraft.yaml_file import read_yaml


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


class SftStage(_Strict):
    """Supervised fine-tuning on documents, or on questions with answers; full, or LoRA with `lora:`."""

    kind: Literal["sft"] = Field(description="fine-tune a checkpoint")
    from_: str = Field(alias="from", description="stage, 'base' or checkpoint directory to start from")
    documents: Path | None = Field(None, description="folder of .md/.txt, or JSONL with id, title, text")
    limit_documents: int | None = Field(None, ge=1, description="the first so many of documents, or of about, only")
    part: Part | None = Field(None, description="train on one of several disjoint parts of the documents: 1/2")
    questions: Path | None = Field(None, description="JSONL with document, question, answers: train on the answers")
    about: Path | None = Field(None, description="train on questions about these documents only")
    answers: Literal["gold", "shuffled"] = Field("gold", description="shuffled: the answer-format control")
    text: TextSettings = Field(WHOLE, description="how documents become rows: chunks, overlap, the title's loss")
    replay: ReplaySettings | None = Field(None, description="general text to train on beside the stage's own data")
    lora: dict[str, Any] | None = Field(None, description="arguments of PEFT's LoraConfig; absent: full fine-tuning")
    trainer: dict[str, Any] = Field({}, description="arguments of TRL's SFTConfig")


class RlStage(RlChoices):
    """Closed-book reinforcement learning with GRPO, RLOO or ReMax; full, or LoRA with `lora:`."""

    kind: Literal["rl"] = Field(description="train with rewards on questions")
    from_: str = Field(alias="from", description="the SFT stage or checkpoint whose knowledge is to be used")
    domain: Literal["knowledge"] = Field("knowledge", description="what is learnt: closed-book questions")
    questions: Path = Field(description="JSONL with document, question, answers")
    reward: dict[str, float] | None = Field(None, description="reward name or dotted path -> weight")
    rounds: list[Annotated[int, Field(ge=1)]] = Field(
        [], description="steps of several rounds, instead of trainer.max_steps; pass rates are measured before each"
    )
    pass_rate_samples: int = Field(
        0, ge=0, description="sample each question so often first, and train on those answered sometimes but not always"
    )
    lora: dict[str, Any] | None = Field(None, description="arguments of PEFT's LoraConfig; absent: full fine-tuning")
    trainer: dict[str, Any] = Field({}, description="arguments of TRL's GRPOConfig (rloo: RLOOConfig)")


class ExtractStage(_Strict):
    """v = θ_RL − θ_SFT, kept as an artefact."""

    kind: Literal["extract"] = Field(description="take a skill out of two checkpoints")
    rl: str = Field(description="the rl stage, or a checkpoint directory or PEFT adapter after RL")
    sft: str = Field(description="the checkpoint that RL started from")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="what the skill is stored in")
    domain: str | None = Field(None, description="what the skill was learnt on, for its manifest")
    licence: str | None = Field(None, description="SPDX identifier, for its manifest")


class RandomVectorStage(_Strict):
    """The control: a random vector with the skill's norm in every tensor."""

    kind: Literal["random_vector"] = Field(description="make the control: a random vector like a skill")
    skill: str = Field(description="stage, skill directory or name whose norms are taken")
    seed: int | None = Field(None, ge=0, lt=2**32, description="default: the recipe's")


class ScaledSkill(_Strict):
    """One of several skills."""

    skill: str = Field(description="stage, skill directory or name")
    scale: Annotated[float, AfterValidator(_finite)] = Field(1.0, description="λ of this skill")


class InjectStage(_Strict):
    """θ = θ_target + λ·v; v is one skill, or what a merging method makes of several."""

    kind: Literal["inject"] = Field(description="add a skill to a checkpoint")
    target: str = Field(description="stage, 'base' or checkpoint directory that receives the skill")
    skill: str | None = Field(None, description="stage, skill directory or name of a skill, such as squad-recall")
    skills: list[ScaledSkill] = Field([], description="several, each with its scale, instead of one")
    scale: Annotated[float, AfterValidator(_finite)] = Field(1.0, description="λ")
    scales: dict[str, Annotated[float, AfterValidator(_finite)]] | None = Field(
        None, min_length=1, description="λ by pattern of tensor names, and 'default' (1): times scale; the first counts"
    )
    method: str = Field("task_arithmetic", description="a merging method of vectors: task_arithmetic is the sum")
    parameters: dict[str, Any] = Field({}, description="the method's own, as in a merge recipe")

    @property
    def injected(self) -> list[tuple[str, float]]:
        """Every skill with its scale."""
        return [(each.skill, each.scale) for each in self.skills] or [(str(self.skill), 1.0)]


class EvalStage(_Strict):
    """Scores of several models on the same questions, closed-book or with more in the prompt, and retention."""

    kind: Literal["eval"] = Field(description="score models")
    models: list[str] = Field(
        min_length=1, description="stages, 'base' or checkpoint directories: the table's closed-book rows"
    )
    rows: list[EvalRow] = Field([], description="rows with documents or worked examples in the prompt")
    questions: Path = Field(description="JSONL with document, question, answers")
    documents: Path | None = Field(
        None, description="keep only questions on these documents; bm25 searches all of them"
    )
    limit_documents: int | None = Field(None, ge=1, description="keep questions on the first so many documents only")
    part: Part | None = Field(None, description="keep questions on one of several parts of the documents: 1/2")
    retention: RetentionField = Field(
        True, description="true: score the general-knowledge questions that ship; or tasks, data, limit, text"
    )
    baseline: str | None = Field(None, description="the row that differences are taken against; default: the SFT row")
    max_new_tokens: int = Field(32, ge=1, description="longest answer, in tokens")
    batch_size: int = Field(64, ge=1, description="questions answered at once")
    labels: dict[str, str] = Field({}, description="model -> what the table calls it")


Stage = Annotated[
    SftStage
    | RlStage
    | ExtractStage
    | RandomVectorStage
    | InjectStage
    | EvalStage
    | SynthesizeStage
    | RefineStage
    | SinglePassageStage
    | DistilStage
    | MixStage
    | SelfEditStage,
    Field(discriminator="kind"),
]

DATA = ("documents", "questions")
"""Fields that hold a path, or the name of a stage that makes documents or questions (`WRITES_DATA`)."""

WRITES_DATA = (SynthesizeStage, MixStage)
"""Stages whose result is read as documents or questions."""

CHOICE = ("limit_documents", "part")
"""Fields that choose among the documents."""

REFERENCES: dict[str, tuple[str, ...]] = {
    "sft": ("from_",),
    "rl": ("from_", "judge"),
    "extract": ("rl", "sft"),
    "random_vector": ("skill",),
    "inject": ("target", "skill", "skills"),
    "eval": ("models", "rows"),
    "synthesize": ("model",),
    "single_passage": ("from_", "skills"),
    "distil": ("from_",),
    "mix": ("model",),
    "self_edit": ("from_",),
}
"""Stage kind -> the fields that name another stage, the base, or a directory."""


MAKES: dict[str, str] = {
    "sft": "checkpoint",
    "rl": "checkpoint",
    "inject": "checkpoint",
    "extract": "skill",
    "random_vector": "skill",
    "eval": "table",
    "synthesize": "folder of documents",
    "single_passage": "table",
    "distil": "checkpoint",
    "mix": "set of questions",
    "self_edit": "checkpoint",
}


GROWS_FROM = {"sft": "from_", "rl": "from_", "distil": "from_", "self_edit": "from_", "inject": "target"}
"""Kind of stage that changes a checkpoint's weights -> the field that names that checkpoint."""

TRAINS = ("sft", "rl", "distil", "self_edit", "single_passage")
"""Kinds that train a model on documents or questions."""

ASKS = ("eval", "single_passage")
"""Kinds whose questions are reported."""


class Recipe(_Strict):
    """A whole recipe; `load_recipe` is the way to get one."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run's folder under runs/")
    base: str = Field(description="the pre-trained model: checkpoint directory or hub id; stages call it 'base'")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything that is random")
    title: str | None = Field(None, description="the report's heading")
    stages: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Stage] = Field(
        min_length=1, description="stages by name, in any order: each runs after those that it refers to"
    )


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


KINDS: dict[str, type[_Strict]] = {
    "sft": SftStage,
    "rl": RlStage,
    "extract": ExtractStage,
    "random_vector": RandomVectorStage,
    "inject": InjectStage,
    "eval": EvalStage,
    "synthesize": SynthesizeStage,
    "refine": RefineStage,
    "single_passage": SinglePassageStage,
    "distil": DistilStage,
    "mix": MixStage,
    "self_edit": SelfEditStage,
}


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


def references(stage: _Strict) -> list[tuple[str, str]]:
    """Return (field, what it names) for each reference of a loaded recipe's stage, in order."""
    found = []
    for field in REFERENCES[stage.kind]:  # type: ignore[attr-defined]
        value = getattr(stage, field)
        named = value if isinstance(value, list) else [] if value is None else [value]
        found += [(field.rstrip("_"), _named_by(each)) for each in named]
    return found + [(field, name) for field in DATA if (name := synthesis_named(getattr(stage, field, None)))]


def _named_by(value: str | ScaledSkill | RowSkill | EvalRow) -> str:
    if isinstance(value, ScaledSkill | RowSkill):
        return value.skill
    return value.model if isinstance(value, EvalRow) else value


def synthesis_named(data: Path | None) -> str | None:
    """Return the stage (of `WRITES_DATA`) that a data field of a loaded recipe names, None where it holds a path."""
    return None if data is None or data.is_absolute() else str(data)


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


def _check_makers(recipe: Recipe, name: str, stage: _Strict) -> None:
    """Raise for a reference to a stage that makes something else than what is needed there."""
    for field, reference in references(stage):
        if reference in recipe.stages and field not in DATA:
            wanted = "skill" if field in ("skill", "skills") else "checkpoint"
            made = MAKES[recipe.stages[reference].kind]
            if made != wanted:
                raise RecipeError(f"stages.{name}.{field}: '{reference}' makes a {made}, expected a {wanted}")


def is_path(reference: str) -> bool:
    """Return whether a reference that names no stage is meant as a path or hub id: it has a slash or a leading dot."""
    return "/" in reference or reference.startswith((".", "~"))


def is_local(base: str) -> bool:
    """Return whether a recipe's `base` names a directory rather than a hub id."""
    return Path(base).is_dir() or base.startswith((".", "/", "~"))


def order(recipe: Recipe) -> list[str]:
    """Return the stage names so that each comes after those it refers to, otherwise in the file's order.

    Raises:
        RecipeError: a reference to a stage that is not there, or a cycle, with its members.
    """
    from skillgraft.skills.library import skill_names

    for name, stage in recipe.stages.items():
        for field, reference in references(stage):
            if reference != BASE and reference not in recipe.stages and not is_path(reference):
                skills = skill_names() if field.startswith("skill") else ()
                hint = did_you_mean(reference, [*recipe.stages, BASE, *skills])
                raise RecipeError(f"stages.{name}.{field}: there is no stage '{reference}'{hint}; a path needs a slash")
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
