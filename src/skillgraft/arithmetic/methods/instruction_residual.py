"""Instruction residual: instruct − base, added to an update of that same base (arXiv 2410.10739, section 3).

`task_arithmetic` is the reference definition and `kernel` what the CPU runs; `test_the_kernels_are_the_definitions` in
`tests/arithmetic/test_methods.py` holds both to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from skillgraft.arithmetic.arrays import Array
from skillgraft.arithmetic.merge_schema import MergeRecipe
from skillgraft.arithmetic.methods.method import KernelSettings, Method, Parameters, TileContext
from skillgraft.arithmetic.methods.task_arithmetic import task_arithmetic
from skillgraft.errors import CompatibilityError, RecipeError

if TYPE_CHECKING:
    from skillgraft.arithmetic.plan_types import Draft


class InstructionResidual(Parameters):
    """No parameters: the residual is the operand's model minus its `minus`."""


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return task_arithmetic(values, tile.weights)


def _kernel(tile: TileContext) -> KernelSettings:
    return KernelSettings(tile.weights)


def _check(recipe: MergeRecipe) -> None:
    for place, operand in enumerate(recipe.operands):
        if operand.model is None or operand.minus is None:
            raise RecipeError(
                f"operands.{place}: instruction_residual takes an instruct model and, as minus, the base that it was "
                "made from; expected both (a skill or an adapter goes with task_arithmetic)"
            )


def _plan(draft: Draft) -> Draft:
    """Add remarks on how base and instruct model were found to stem from the residual's base; raise otherwise.

    By provenance, or by the correlation of a sketch of the weights; `allow: [base]` accepts any.
    """
    from skillgraft.checkpoint.provenance import base_of
    from skillgraft.skills.compatibility import SAME_BASE_CORRELATION
    from skillgraft.skills.sketch import sketch_correlation, sketch_weights

    recipe = draft.recipe
    operand = recipe.operands[0]
    if operand.model is None or operand.minus is None:  # `_check` has refused it
        return draft
    sketch, remarks = sketch_weights(draft.layouts[operand.minus]), []
    for role, path in (("base", recipe.base), ("operands.0.model", operand.model)):
        stated = base_of(path)
        if stated is not None and stated["fingerprint"] == draft.inputs["operand0.minus"]:
            remarks.append(f"{role}: stems from {operand.minus} by provenance")
            continue
        correlation = sketch_correlation(draft.layouts[path], sketch)
        measured = "unknown" if correlation is None else f"{correlation:.3f}"
        finding = f"{role} {path} against {operand.minus}: correlation of the weights sketch {measured}"
        if (correlation is None or correlation < SAME_BASE_CORRELATION) and "base" not in recipe.allow:
            raise CompatibilityError(
                f"{finding}: they look like different bases; an instruction residual is instruct − base, added to an "
                "update of that same base: name the base that both come from as minus (--allow base goes on all the "
                "same)"
            )
        remarks.append(finding)
    return replace(draft, remarks=(*draft.remarks, *remarks))


INSTRUCTION_RESIDUAL = Method(
    name="instruction_residual",
    inputs="vectors",
    combine=_combine,
    parameters=InstructionResidual,
    kernel=_kernel,
    takes_skills=False,
    max_operands=1,
    check=_check,
    plan=_plan,
)
