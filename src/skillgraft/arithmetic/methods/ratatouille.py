"""Model ratatouille: the average of several fine-tunings on the target task (arXiv 2212.10445, section 3).

`linear` is the reference definition and `kernel` what the CPU runs; `test_the_kernels_are_the_definitions` in
`tests/arithmetic/test_methods.py` holds both to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from skillgraft.arithmetic.arrays import Array
from skillgraft.arithmetic.methods.linear import check_average, linear
from skillgraft.arithmetic.methods.method import KernelSettings, Mergekit, Method, Parameters, TileContext
from skillgraft.errors import RecipeError

if TYPE_CHECKING:
    from skillgraft.arithmetic.plan_types import Draft


class Ratatouille(Parameters):
    """No parameters: the models' average, by their weights."""


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return linear(values, tile.weights)


def _kernel(tile: TileContext) -> KernelSettings:
    return KernelSettings(tile.weights, divisor=float(sum(tile.weights)))


def _plan(draft: Draft) -> Draft:
    """Raise `RecipeError` when two operands are one model, or one is the base: an average needs several trainings."""
    seen: dict[tuple[str, ...], str] = {(draft.inputs["base"],): "base"}
    for number in sorted({int(name[7 : name.index(".")]) for name in draft.inputs if name.startswith("operand")}):
        key = tuple(value for name, value in draft.inputs.items() if name.startswith(f"operand{number}."))
        if key in seen:
            raise RecipeError(
                f"operands.{number} is the same model as {seen[key]}; ratatouille averages several fine-tunings on the "
                "target task, each begun from another auxiliary one: expected different models (linear takes any)"
            )
        seen[key] = f"operands.{number}"
    return draft


def _mergekit(_parameters: Ratatouille, _models: Sequence[str], _base: str) -> dict[str, Any]:
    return {"normalize": True}


RATATOUILLE = Method(
    name="ratatouille",
    inputs="models",
    combine=_combine,
    parameters=Ratatouille,
    kernel=_kernel,
    min_operands=2,
    check=check_average,
    plan=_plan,
    mergekit=Mergekit("linear", _mergekit, lists_base=True),
)
