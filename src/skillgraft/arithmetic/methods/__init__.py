"""The merging methods: each a pure function of tensors and numbers; `METHODS` says what each one needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from skillgraft.arithmetic.methods.dare import dropped
from skillgraft.arithmetic.methods.linear import linear, task_arithmetic
from skillgraft.arithmetic.methods.model_stock import model_stock, stock_ratio
from skillgraft.arithmetic.methods.slerp import slerp, slerp_weights
from skillgraft.arithmetic.methods.ties import elect_and_average, ties


class Part(NamedTuple):
    """What a method is told beside the numbers of one tile.

    `numbers` are the places in the recipe of the operands that are there, `weights` theirs; `facts` is what the first
    pass found of the whole tensor (None without one), one entry or row per operand of `numbers`.
    """

    name: str
    start: int
    numbers: Sequence[int]
    weights: Sequence[float]
    facts: Any
    parameters: Any


@dataclass(frozen=True)
class Method:
    """A method: what its operands are, what it must know of whole tensors first, its operands' number, its function.

    Of `models` it makes a tensor, of `vectors` (task vectors) the change to the base. `first_pass`: `gram`, the matrix
    of dot products; `thresholds`, the magnitude key of the smallest element to be kept.
    """

    of: Literal["models", "vectors"]
    combine: Callable[[list[Tensor], Part], Tensor]
    first_pass: Literal["gram", "thresholds"] | None = None
    least: int = 1
    most: int | None = None


def _slerp(values: list[Tensor], part: Part) -> Tensor:
    (aa, ab), (_, bb) = part.facts
    return slerp(values[0], values[1], slerp_weights(part.parameters.t, ab, aa**0.5, bb**0.5))


def _ties(values: list[Tensor], part: Part) -> Tensor:
    return ties(values, part.weights, part.facts, part.parameters.normalize, part.parameters.scale)


def _drop(values: list[Tensor], part: Part) -> list[Tensor]:
    return dropped(values, part.parameters.seed, part.numbers, part.name, part.start, part.parameters.density)


METHODS: dict[str, Method] = {
    "linear": Method("models", lambda values, part: linear(values, part.weights, part.parameters.normalize)),
    "task_arithmetic": Method("vectors", lambda values, part: task_arithmetic(values, part.weights)),
    "slerp": Method("models", _slerp, "gram", least=2, most=2),
    "ties": Method("vectors", _ties, "thresholds"),
    "dare": Method("vectors", lambda values, part: task_arithmetic(_drop(values, part), part.weights)),
    "dare_ties": Method(
        "vectors", lambda values, part: elect_and_average(_drop(values, part), part.weights, part.parameters.normalize)
    ),
    "model_stock": Method(
        "vectors", lambda values, part: model_stock(values, stock_ratio(part.facts)), "gram", least=2
    ),
}
