"""Search space: which numbers of a merge recipe vary (operands' weights, by group of tensors, and parameters)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from skillgraft.arithmetic.merge_schema import DEFAULT, MergeRecipe
from skillgraft.arithmetic.methods import get_method
from skillgraft.arithmetic.plan import check_number, plan_merge
from skillgraft.errors import RecipeError, did_you_mean

WEIGHTS = "weights"
"""The name under which `vary` gives the range of all weights."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Dimension:
    """One number between `low` and `high`: of an operand's tensors (`patterns`; none: all) or of the method."""

    name: str
    low: float
    high: float
    start: float
    operand: int | None = None
    patterns: tuple[str, ...] = ()

    @property
    def place(self) -> float:
        """The position of `start` in [0, 1]."""
        return (self.start - self.low) / (self.high - self.low)

    def value(self, unit: float) -> float:
        """Return the number at `unit` in [0, 1], `start` to its last bit."""
        return self.start if unit == self.place else self.low + (self.high - self.low) * unit


@dataclass(frozen=True)
class Space:
    """The recipe and the numbers of it that vary."""

    recipe: MergeRecipe
    dimensions: tuple[Dimension, ...]

    @property
    def start(self) -> list[float]:
        """The recipe's own numbers, each as a place in [0, 1]."""
        return [dimension.place for dimension in self.dimensions]

    def values(self, point: Sequence[float]) -> dict[str, float]:
        """Return the numbers at a point of the unit cube, by name."""
        return {d.name: d.value(unit) for d, unit in zip(self.dimensions, point, strict=True)}

    def recipe_at(self, point: Sequence[float] | None) -> MergeRecipe:
        """Return the recipe with the numbers at a point of the unit cube; at None, the one that changes nothing."""
        if point is None:
            whole = [o.model_copy(update={"weight": 0.0, "weights": None}) for o in self.recipe.operands]
            return self.recipe.model_copy(update={"operands": whole})
        operands, parameters = list(self.recipe.operands), self.recipe.parameters.model_dump()
        for dimension, unit in zip(self.dimensions, point, strict=True):
            value = dimension.value(unit)
            if dimension.operand is None:
                parameters[dimension.name] = value
                continue
            operand = operands[dimension.operand]
            if dimension.patterns:
                changed = {**(operand.weights or {}), **dict.fromkeys(dimension.patterns, value)}
                operands[dimension.operand] = operand.model_copy(update={"weights": changed})
            else:
                operands[dimension.operand] = operand.model_copy(update={"weight": value})
        form = get_method(self.recipe.method).parameters.model_validate(parameters)
        return self.recipe.model_copy(update={"operands": operands, "parameters": form})

    @property
    def has_target_alone(self) -> bool:
        """True if the method can leave all of its operands out."""
        try:
            check_number(self.recipe_at(None))
        except RecipeError:
            return False
        return True


def space_of(recipe: MergeRecipe, vary: Mapping[str, Range], per_layer: int | None = None) -> Space:
    """Return the space that `vary` opens: `weights` (of each operand, or each of its patterns) and parameters by name.

    `per_layer` gives every operand that many weights, for as many groups of neighbouring layers, and one more for its
    tensors outside of layers. Tuning starts at the recipe's own numbers. Raises `RecipeError` for an unknown
    parameter, one that is not a real number, a range that is empty, leads out of what the method takes or leaves the
    recipe's own number out, and for a recipe with nothing to vary.
    """
    for name, (low, high) in vary.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise RecipeError(f"vary {name}: got {low:g},{high:g}, expected two numbers, the smaller first")
    if per_layer is not None:
        if WEIGHTS not in vary:
            raise RecipeError("per-layer groups were asked for, but weights do not vary; add weights to what varies")
        recipe = _grouped(recipe, per_layer)
    dimensions: list[Dimension] = []
    for name, bounds in vary.items():
        dimensions += _weights(recipe, bounds, per_layer) if name == WEIGHTS else [_parameter(recipe, name, bounds)]
    for d in dimensions:
        if not d.low <= d.start <= d.high:
            raise RecipeError(
                f"vary: the recipe's {d.name} is {d.start:g}, which does not lie between {d.low:g} and {d.high:g}; "
                "change the recipe, where tuning starts, or the range"
            )
    if not dimensions:
        raise RecipeError("vary names nothing; expected weights or a parameter of the method")
    return Space(recipe, tuple(dimensions))


def _weights(recipe: MergeRecipe, bounds: Range, per_layer: int | None) -> list[Dimension]:
    if not get_method(recipe.method).weighted:
        raise RecipeError(f"vary weights: {recipe.method} takes none; vary a parameter of it, or take another method")
    dimensions = []
    for number, operand in enumerate(recipe.operands):
        place = f"operands.{number}.weight"
        if operand.weights is None:
            dimensions.append(Dimension(place, *bounds, operand.weight, number))
            continue
        groups = _same_group(operand.weights, per_layer) if per_layer else {p: (p,) for p in operand.weights}
        dimensions += [
            Dimension(f"{place}s.{name}", *bounds, operand.weights[patterns[0]], number, patterns)
            for name, patterns in groups.items()
        ]
    return dimensions


def _parameter(recipe: MergeRecipe, name: str, bounds: Range) -> Dimension:
    form = get_method(recipe.method).parameters
    numbers = [key for key, field in form.model_fields.items() if type(field.default) is float]
    if name not in numbers:
        raise RecipeError(f"vary {name}: {recipe.method} has no such number{did_you_mean(name, [WEIGHTS, *numbers])}")
    for value in bounds:
        try:
            form.model_validate({**recipe.parameters.model_dump(), name: value})
        except ValidationError as error:
            raise RecipeError(f"vary {name}: {value:g} is refused: {error.errors()[0]['msg']}") from error
    return Dimension(name, *bounds, float(getattr(recipe.parameters, name)))


_LAYER = re.compile(r"^((?:[^.]+\.)*?)(\d+)\.")
"""The first part of a tensor's name that is a number: the layer's."""


def _layer(name: str) -> tuple[str, int] | None:
    match = _LAYER.match(name)
    return (match[1], int(match[2])) if match else None


def _grouped(recipe: MergeRecipe, groups: int) -> MergeRecipe:
    """Return the recipe with a pattern for every layer of every operand, and `default` where tensors lie outside."""
    for number, operand in enumerate(recipe.operands):
        if operand.weights is not None:
            raise RecipeError(f"operands.{number} has weights by pattern already; leave the per-layer groups out")
    whole = [operand.model_copy(update={"weight": 1.0}) for operand in recipe.operands]
    plan = plan_merge(recipe.model_copy(update={"operands": whole}))
    operands = []
    for number, operand in enumerate(recipe.operands):
        names = [t.spec.name for t in plan.tensors if any(o.number == number for o in t.operands)]
        layers = sorted({layer for name in names if (layer := _layer(name))}, key=lambda layer: layer[::-1])
        if not 1 <= groups <= len({index for _, index in layers}):
            raise RecipeError(
                f"per-layer groups: got {groups}, expected 1 to {len({index for _, index in layers})}, the layers that "
                f"operands.{number} changes"
            )
        weights = {f"{prefix}{index}.*": operand.weight for prefix, index in layers}
        if any(_layer(name) is None for name in names):
            weights[DEFAULT] = operand.weight
        operands.append(operand.model_copy(update={"weights": weights}))
    return recipe.model_copy(update={"operands": operands})


def _same_group(weights: Mapping[str, float], groups: int) -> dict[str, tuple[str, ...]]:
    """Return the patterns of each group of neighbouring layers, by a name such as `layers 0-9`."""
    layers = {pattern: layer[1] for pattern in weights if (layer := _layer(pattern))}
    indices = sorted(set(layers.values()))
    patterns_by_group: dict[str, tuple[str, ...]] = {}
    for group in range(groups):
        members = indices[group * len(indices) // groups : (group + 1) * len(indices) // groups]
        name = f"layers {members[0]}-{members[-1]}"
        patterns_by_group[name] = tuple(pattern for pattern, index in layers.items() if index in members)
    if DEFAULT in weights:
        patterns_by_group[DEFAULT] = (DEFAULT,)
    return patterns_by_group
