"""The contract of a merging method: everything that the engine must know of one. Loads neither NumPy nor torch.

A method is one object, in one file, listed in one dict (`methods.METHODS`). `combine` is its reference definition, a
pure function that runs on NumPy arrays and on Torch tensors alike, with operators that IEEE 754 fixes to the last bit:
a GPU runs it as it is. On the CPU a method may have `kernel` do the same compiled; a method without one runs `combine`
there on NumPy arrays, several times slower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from skillgraft.arithmetic.kernels.codes import WEIGHTED_SUM
from skillgraft.arithmetic.merge_schema import MergeRecipe, RecipePart

if TYPE_CHECKING:
    import numpy as np

    from skillgraft.arithmetic.arrays import Array
    from skillgraft.arithmetic.buffers import Buffers
    from skillgraft.arithmetic.plan_types import Draft, Operand, TensorPlan
    from skillgraft.arithmetic.tiles import Tile

Density = Annotated[float, Field(gt=0, le=1)]


class Parameters(RecipePart):
    """The form of a method's `parameters` in a recipe; every field has a description."""


class TileContext(NamedTuple):
    """Context of a tile: what a method may use beside the operands' values.

    `name` is the tensor's, `start` the first of its elements in the tile, `size` how many those are. `numbers` are the
    places in the recipe of the operands that have this tile, `weights` theirs. `statistics` is what the method's
    statistic found of the whole tensor (None without one): where it is `per_operand`, an entry for each of `numbers`.
    """

    name: str
    start: int
    size: int
    numbers: Sequence[int]
    weights: Sequence[float]
    statistics: Any
    parameters: Any


class KernelSettings(NamedTuple):
    """A method in the terms of the compiled kernel (`kernels.tiles.merge_tile`).

    Each operand vᵢ is multiplied by masks[i] and divided by `density` where there are `masks` (operands, count); where
    there are `thresholds`, elements whose magnitude in fp32 is below thresholds[i] count as 0. `rule` is WEIGHTED_SUM,
    Σ wᵢ·vᵢ, or ELECT, the disjoint mean (the sum without `normalize`); the result is divided by `divisor` and
    multiplied by `factor`.
    """

    weights: Sequence[float]
    rule: int = WEIGHTED_SUM
    masks: np.ndarray | None = None
    density: float = 1.0
    thresholds: Sequence[float] = ()
    normalize: bool = False
    divisor: float = 1.0
    factor: float = 1.0


def report_nothing(_: Mapping[str, Any]) -> dict[str, Any]:
    """Return nothing: what a statistic adds to a report by default."""
    return {}


@dataclass(frozen=True)
class Statistic:
    """A statistic of whole tensors that a method needs before it combines their tiles.

    `gather(tensors, parameters, thread_buffers)` streams the tensors that change and returns by tensor name what
    `TileContext.statistics` is to be; with `per_operand` a list with an entry for each operand of the tensor, of which
    a tile gets those of the operands that it has. The streaming functions are in `arithmetic.statistics`. `report`
    turns it into entries of the merge's report. For estimates: `passes` says how often the operands are read,
    `memory_bytes` what it holds.
    """

    gather: Callable[[Sequence[TensorPlan], Any, Sequence[Buffers]], dict[str, Any]]
    passes: int
    per_operand: bool = False
    memory_bytes: float = 0.0
    report: Callable[[Mapping[str, Any]], dict[str, Any]] = report_nothing


def no_parameters(_: Any) -> dict[str, Any]:
    """Return no parameters for mergekit."""
    return {}


@dataclass(frozen=True)
class Mergekit:
    """The method in mergekit 0.1.5.

    `of_merge(parameters, models, base)` gives mergekit's parameters of the merge, from ours, the models' names in
    order and the base's; `of_model(parameters)` those of each model beside its weight. Both may raise `RecipeError`.
    With `lists_base` there is no `base_model`: the base stands first among the models, with weight 0 if it is none.
    """

    merge_method: str
    of_merge: Callable[[Any, Sequence[str], str], dict[str, Any]]
    of_model: Callable[[Any], dict[str, Any]] = no_parameters
    lists_base: bool = False


def accept_operands(_: MergeRecipe) -> None:
    """Accept any operands."""


def accept_weights(_: Sequence[float], __: Any, ___: str) -> None:
    """Accept any weights."""


def keep_draft(draft: Draft) -> Draft:
    """Return a plan as it is."""
    return draft


@dataclass(frozen=True)
class Method:
    """A merging method.

    inputs        `models`: `combine` makes a tensor of the operands' tensors; `vectors`: the change to the base's of
                  their differences
    combine       the reference definition, from the operands' values of a tile in fp64, in the recipe's order
    parameters    the form of `parameters` in a recipe
    kernel        the same for the compiled kernel on the CPU
    statistics    what must be known of whole tensors first
    weighted      False for a method that compares the operands as they are: it takes no weights, and a tensor that not
                  every operand has stays the base's
    takes_skills  whether operands can be skills and adapters alone
    check         raises `RecipeError` for operands that the method cannot take, before anything is read
    check_weights(weights, parameters, where)  the same for the weights that a tensor gets
    plan          may refuse, remark on or rewrite the plan, from headers alone
    mergekit      the method in mergekit, None where it has no equivalent

    `bytes_per_second` is what one thread read and wrote on an AMD EPYC with AVX512, for estimates
    (`benchmarks/results/merge-1.1b.json`).
    """

    name: str
    inputs: Literal["models", "vectors"]
    combine: Callable[[Sequence[Array], TileContext], Array]
    parameters: type[Parameters]
    kernel: Callable[[TileContext], KernelSettings] | None = None
    statistics: Statistic | None = None
    weighted: bool = True
    takes_skills: bool = True
    min_operands: int = 1
    max_operands: int | None = None
    check: Callable[[MergeRecipe], None] = accept_operands
    check_weights: Callable[[Sequence[float], Any, str], None] = accept_weights
    plan: Callable[[Draft], Draft] = keep_draft
    mergekit: Mergekit | None = None
    bytes_per_second: float = 4e9

    def context(
        self, parameters: Any, tensor: TensorPlan, operands: Sequence[Operand], tile: Tile, statistics: Any
    ) -> TileContext:
        """Return the context of a tile that `operands` have; `statistics` are the whole tensor's."""
        if self.statistics is not None and self.statistics.per_operand:
            statistics = [statistics[tensor.operands.index(operand)] for operand in operands]
        numbers, weights = [operand.number for operand in operands], [operand.weight for operand in operands]
        return TileContext(
            tensor.spec.name, tile.start, tile.stop - tile.start, numbers, weights, statistics, parameters
        )
