"""The form of a merge: a method, the base that owns what is kept, operands in the user's order. Loads no torch.

method: task_arithmetic
base: my-sft-model                          # the target: config, tokenizer and every tensor not named stay its
operands:
  - {model: chat-model, minus: base-model, weight: 0.5}     # λ·(B − C); without `minus`, B − base
  - {adapter: my-lora, weight: 1.0}                         # λ·B·A of a PEFT adapter
  - {skill: skills/squad-recall, weight: 1.0}               # λ·v; a directory, or a name in the library
  - {skill: my-skill, weights: {"model.layers.0.*": 0.3, default: 1}}  # a λ for the tensors of each pattern
parameters: {}
dtype: bfloat16
"""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from skillgraft.arithmetic.methods import METHODS
from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.support.yaml_file import read_yaml

Finite = Annotated[float, Field(allow_inf_nan=False)]
Density = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, lt=1)]

OVERRIDES = ("base", "missing", "tokenizer", "architecture")
"""What `allow` may name: refusals that a user can turn into a remark."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Linear(_Strict):
    """`normalize` divides by the sum of the weights."""

    normalize: bool = Field(True, description="divide by the sum of the weights")


class TaskArithmetic(_Strict):
    """No parameters: the weights say it all."""


class Slerp(_Strict):
    """`t` is the place between the first model (0) and the second (1)."""

    t: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="0: the first model, 1: the second")


class Ties(_Strict):
    """`density` is kept of each vector: over the whole model as in the paper, or of each tensor; λ is `scale`."""

    density: Density = Field(0.2, description="share of each vector that is kept, the largest first")
    scope: Literal["model", "tensor"] = Field("model", description="kept of the whole vector, or of each tensor")
    normalize: bool = Field(True, description="divide by the weights that agree with the elected sign")
    scale: Finite = Field(1.0, description="λ")


class Dare(_Strict):
    """`density` is kept of each vector, at random by `seed`, and divided by it."""

    density: Density = Field(0.2, description="share of each vector that is kept, at random")
    seed: int = Field(0, description="of the random masks")


class DareTies(Dare):
    """`normalize` divides by the weights that agree with the elected sign."""

    normalize: bool = Field(True, description="divide by the weights that agree with the elected sign")


class ModelStock(_Strict):
    """No parameters: the angle between the vectors decides."""


class Breadcrumbs(_Strict):
    """Of each tensor's vector the share `beta` of the largest magnitudes goes, and `gamma` of the smallest.

    Defaults: where the search of the paper's code begins.
    """

    beta: Share = Field(0.006, description="share of the largest magnitudes that goes")
    gamma: Share = Field(0.85, description="share of the smallest magnitudes that goes")

    @model_validator(mode="after")
    def _leaves_something(self) -> Breadcrumbs:
        if self.beta + self.gamma >= 1:
            raise ValueError(f"beta {self.beta:g} and gamma {self.gamma:g} leave nothing; expected a sum below 1")
        return self


class Pcb(_Strict):
    """`ratio` (r) of each vector's coefficients is kept: of the whole vector as in the paper, or of each tensor."""

    ratio: Density = Field(0.2, description="share of each vector's coefficients that is kept")
    scope: Literal["model", "tensor"] = Field("model", description="kept of the whole vector, or of each tensor")


class Cabs(_Strict):
    """`n` of every `m` consecutive elements are kept of each vector, none of them twice."""

    n: Annotated[int, Field(ge=1)] = Field(64, description="elements kept of every m")
    m: Annotated[int, Field(ge=1, le=1 << 16)] = Field(256, description="consecutive elements of which n are kept")

    @model_validator(mode="after")
    def _keeps_a_part(self) -> Cabs:
        if self.n > self.m:
            raise ValueError(f"n {self.n} is larger than m {self.m}; expected n of m elements to be kept, n <= m")
        return self


class Mediator(_Strict):
    """Layers whose conflict is at most `threshold` are averaged; `fallback` is for the others.

    The conflict is the share of elements with opposite signs; without a threshold it is the mean over the layers.
    """

    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="largest conflict at which a layer is averaged; default: the mean over the layers"
    )
    fallback: Literal["task_arithmetic", "first"] = Field(
        "task_arithmetic", description="what becomes of the other layers"
    )


class Copa(_Strict):
    """`density` of each factor is kept, `clamp` of its directions keep a scale of their own, λ is `coefficient`.

    Defaults: those of the paper's code.
    """

    density: Density = Field(0.2, description="share of each factor that is kept")
    clamp: Density = Field(0.2, description="share of the directions that keep a scale of their own")
    coefficient: Finite = Field(2.0, description="λ")


class Ratatouille(_Strict):
    """No parameters: the models' average, by their weights."""


class InstructionResidual(_Strict):
    """No parameters: the residual is the operand's model minus its `minus`."""


PARAMETERS: dict[str, type[_Strict]] = {
    "linear": Linear,
    "task_arithmetic": TaskArithmetic,
    "slerp": Slerp,
    "ties": Ties,
    "dare": Dare,
    "dare_ties": DareTies,
    "model_stock": ModelStock,
    "breadcrumbs": Breadcrumbs,
    "pcb": Pcb,
    "cabs": Cabs,
    "mediator": Mediator,
    "copa": Copa,
    "ratatouille": Ratatouille,
    "instruction_residual": InstructionResidual,
}


DEFAULT = "default"
"""The key of an operand's `weights` for the tensors that no pattern matches."""


class OperandSpec(_Strict):
    """One operand: a model, a model with an adapter or skill on it, or an adapter or skill alone (a vector).

    `weight` is that of all tensors; `weights` instead gives each the number of the first pattern (`fnmatch`) that it
    matches, and `default` (1, if left out) to the others.
    """

    model: Path | None = Field(None, description="checkpoint directory")
    adapter: Path | None = Field(None, description="PEFT LoRA adapter; with model: put on it")
    skill: Path | None = Field(None, description="skill directory; with model: put on it")
    minus: Path | None = Field(None, description="checkpoint that is subtracted from model; default: base")
    weight: Finite = Field(1.0, description="λ of this operand")
    weights: dict[str, Finite] | None = Field(
        None, min_length=1, description="λ by pattern of tensor names, and `default`, instead of weight"
    )

    @field_validator("model", "adapter", "skill", "minus", mode="before")
    @classmethod
    def _is_named(cls, value: object) -> object:
        if value == "":
            raise ValueError("expected a directory (. is the recipe's own)")
        return value

    @model_validator(mode="after")
    def _says_one_thing(self) -> OperandSpec:
        if self.model is None and self.adapter is None and self.skill is None:
            raise ValueError("names nothing; expected model, adapter or skill")
        if self.adapter is not None and self.skill is not None:
            raise ValueError("names an adapter and a skill; give them as two operands")
        if self.minus is not None and self.model is None:
            raise ValueError("has minus without model; an adapter or skill is a difference already")
        if self.weights is not None and "weight" in self.model_fields_set:
            raise ValueError(f"has weight and weights; give the others' weight as weights.{DEFAULT}")
        return self

    def weight_of(self, name: str) -> float:
        """Return the weight of the tensor `name`."""
        if self.weights is None:
            return self.weight
        matching = (weight for pattern, weight in self.weights.items() if fnmatchcase(name, pattern))
        return next(matching, self.weights.get(DEFAULT, 1.0))

    @property
    def all_weights(self) -> tuple[float, ...]:
        """Every weight that a tensor may get."""
        return (self.weight,) if self.weights is None else tuple(self.weights.values())


class MergeRecipe(_Strict):
    """A whole merge; paths are relative to the recipe's folder when it is read from a file."""

    method: str = Field(description="how operands are combined")
    base: Path = Field(description="checkpoint that owns config, tokenizer and every tensor that no operand changes")
    operands: list[OperandSpec] = Field(min_length=1, description="in your order")
    parameters: Any = Field(default_factory=dict, description="the method's own")
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = Field(
        None, description="of the result; default: each tensor's in the base"
    )
    allow: list[Literal["base", "missing", "tokenizer", "architecture"]] = Field(
        default_factory=list, description="refusals to turn into remarks"
    )


def check_vector_method(method: str, where: str = "") -> None:
    """Raise `RecipeError` for a method that does not make one change of several skills."""
    # instruction_residual takes a model and its base, which no skill is
    vectors = [name for name, each in METHODS.items() if each.of == "vectors" and name != "instruction_residual"]
    if method not in vectors:
        raise RecipeError(f"{where}method {method!r} can't combine skills{did_you_mean(str(method), vectors)}")


def load_merge_recipe(file: Path) -> MergeRecipe:
    """Return the checked recipe in a YAML file; `MissingPathError` or `RecipeError` names what is wrong."""
    return parse_merge_recipe(load_merge_data(file), str(file), file.resolve().parent)


def load_merge_data(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, not yet checked."""
    return read_yaml(file, "merge recipe", "method, base, operands")


def parse_merge_recipe(data: dict[str, Any], where: str = "merge recipe", folder: Path | None = None) -> MergeRecipe:
    """Return the checked recipe of a mapping, relative paths taken from `folder`; `RecipeError` for what is wrong."""
    method = data.get("method")
    if not isinstance(method, str) or method not in PARAMETERS:
        raise RecipeError(f"{where}: method is {method!r}{did_you_mean(str(method), PARAMETERS)}")
    try:
        recipe = MergeRecipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error, [])}") from error
    given = recipe.parameters or {}
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: parameters is {given!r}, expected a mapping")
    if given and not PARAMETERS[method].model_fields:
        key = next(iter(given))
        having = [name for name, form in PARAMETERS.items() if key in form.model_fields]
        hint = f"; {', '.join(having)} have it" if having else ""
        raise RecipeError(f"{where}: unknown key 'parameters.{key}': {method} takes no parameters{hint}")
    try:
        parameters = PARAMETERS[method].model_validate(given)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_explain(error, ['parameters'], PARAMETERS[method])}") from error
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


_FORMS: dict[str, type[_Strict]] = {"operands": OperandSpec}


def _explain(error: ValidationError, above: list[str], form: type[_Strict] | None = None) -> str:
    first = error.errors()[0]
    location = [*above, *(str(part) for part in first["loc"])]
    where = ".".join(location)
    if first["type"] == "extra_forbidden":
        known = form or (_FORMS[location[0]] if location[0] in _FORMS and len(location) > 1 else MergeRecipe)
        return f"unknown key '{where}'{did_you_mean(location[-1], known.model_fields)}"
    if first["type"] == "missing":
        return f"'{where}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    got = first["input"] if isinstance(first["input"], str | int | float | bool | None) else None
    return f"{where} {message}" if got is None else f"{where} is {got!r}: {message[0].lower()}{message[1:]}"
