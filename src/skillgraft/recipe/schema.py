"""The recipe: named stages that refer to each other. `recipe_file` reads one. Loads no torch.

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

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from skillgraft.distil_settings import DistilStage, MixStage
from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.refine_settings import RefineStage
from skillgraft.rl_settings import Part, RlChoices
from skillgraft.self_edit_settings import SelfEditStage
from skillgraft.settings.base import BASE
from skillgraft.settings.base import Strict as _Strict
from skillgraft.settings.evaluation import EvalRow, RetentionField
from skillgraft.settings.synthesis import SynthesizeStage
from skillgraft.settings.text import WHOLE, ReplaySettings, TextSettings
from skillgraft.single_passage_settings import RowSkill, SinglePassageStage


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
    """A whole recipe, as `recipe_file.load_recipe` returns it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the run's folder under runs/")
    base: str = Field(description="the pre-trained model: checkpoint directory or hub id; stages call it 'base'")
    seed: int = Field(0, ge=0, lt=2**32, description="of everything that is random")
    title: str | None = Field(None, description="the report's heading")
    stages: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Stage] = Field(
        min_length=1, description="stages by name, in any order: each runs after those that it refers to"
    )


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
