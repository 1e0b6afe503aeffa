"""The form of a merge recipe: a method, the base that owns what is kept, operands in the user's order. Loads no torch.

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

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Finite = Annotated[float, Field(allow_inf_nan=False)]

OVERRIDES = ("base", "missing", "tokenizer", "architecture")
"""Refusals that `allow` can turn into a remark."""

DEFAULT = "default"
"""The key of an operand's `weights` for the tensors that no pattern matches."""


class RecipePart(BaseModel):
    """A part of a recipe: unknown keys are errors, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class OperandSpec(RecipePart):
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


class MergeRecipe(RecipePart):
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
