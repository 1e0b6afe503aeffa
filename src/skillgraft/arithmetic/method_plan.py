"""What single methods ask of a plan beyond the rules for all: whole blocks, low-rank operands, one family of models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skillgraft.arithmetic.merge_recipe import Copa, MergeRecipe
from skillgraft.arithmetic.tensor_sources import MergedProduct, Product, Stored
from skillgraft.checkpoint.layout import Layout
from skillgraft.checkpoint.provenance import base_of
from skillgraft.errors import CompatibilityError, RecipeError
from skillgraft.skills.compatibility import SAME_BASE_CORRELATION
from skillgraft.skills.sketch import sketch_correlation, sketch_weights

if TYPE_CHECKING:
    from skillgraft.arithmetic.plan import TensorPlan


def check_operands(recipe: MergeRecipe) -> None:
    """Raise `RecipeError` for operands that a method cannot take, whatever they hold."""
    weights = [operand.weight for operand in recipe.operands]
    if recipe.method in ("ratatouille", "mediator") and abs(sum(weights)) < 1e-8:
        raise RecipeError(f"operands: the weights {weights} sum to 0, and {recipe.method} averages; choose others")
    for place, operand in enumerate(recipe.operands):
        if recipe.method == "copa" and operand.model is not None:
            raise RecipeError(
                f"operands.{place} is the checkpoint {operand.model}; copa merges low-rank factors: expected adapters "
                "and skills (pcb, cabs and breadcrumbs take checkpoints)"
            )
        if recipe.method == "instruction_residual" and (operand.model is None or operand.minus is None):
            raise RecipeError(
                f"operands.{place}: instruction_residual takes an instruct model and, as minus, the base that it was "
                "made from; expected both (a skill or an adapter goes with task_arithmetic)"
            )


def check_blocks(tensors: Sequence[TensorPlan], m: int) -> None:
    """Raise `RecipeError` unless every changed tensor is whole blocks of m elements (row by row, as in memory)."""
    sizes = [(t, size) for t in tensors if t.operands for size in (t.target.elements, *t.breaks)]
    for tensor, size in sizes:
        if size % m:
            common = math.gcd(*(size for _, size in sizes))
            power = min(common & -common, 1 << 16)
            raise RecipeError(
                f"parameters.m is {m}: tensor {tensor.spec.name!r} of shape {list(tensor.spec.shape)} has {size} "
                f"elements, which are no whole blocks of {m}; expected m to divide every tensor that changes: "
                f"{common} and what divides it do, such as n: {max(1, power // 4)}, m: {power}"
            )


def merge_factors(tensor: TensorPlan, recipe: MergeRecipe) -> TensorPlan:
    """Return the tensor with one operand in place of all: CoPA's product of their factors.

    Deltas that are stored whole, such as norms', are averaged. Raises `CompatibilityError` for a tensor that not every
    operand changes, or in another form or rank.
    """
    expected = [number for number, operand in enumerate(recipe.operands) if operand.weight != 0]
    if not tensor.operands:
        return tensor
    name, parameters = tensor.spec.name, recipe.parameters
    missing = sorted(set(expected) - {operand.number for operand in tensor.operands})
    if missing:
        raise CompatibilityError(
            f"operands.{missing[0]} does not change {name!r}, which operands.{tensor.operands[0].number} does; copa "
            "merges the factors of adapters and skills on the same modules: leave one out, or use task_arithmetic"
        )
    sources = [operand.terms[0].source for operand in tensor.operands]
    if all(isinstance(source, Stored) for source in sources):
        share = 1.0 / len(sources)
        return replace(tensor, operands=tuple(replace(o, weight=o.weight * share) for o in tensor.operands))
    ranks = [source.a.shape[0] if isinstance(source, Product) else None for source in sources]
    if len(set(ranks)) > 1:
        said = ", ".join("no factors" if rank is None else f"rank {rank}" for rank in ranks)
        raise CompatibilityError(
            f"tensor {name!r}: the operands have {said}; copa merges factors of one rank: expected the same rank in "
            "all, or use task_arithmetic"
        )
    weights = tuple(operand.weight for operand in tensor.operands)
    products = tuple(source for source in sources if isinstance(source, Product))
    assert isinstance(parameters, Copa)
    merged = MergedProduct(products, weights, parameters.density, parameters.clamp, parameters.coefficient)
    first = tensor.operands[0]
    return replace(
        tensor, operands=(replace(first, number=0, weight=1.0, terms=(first.terms[0]._replace(source=merged),)),)
    )


def check_distinct(inputs: Mapping[str, str]) -> None:
    """Raise `RecipeError` when two operands are one model, or one is the base: an average needs several trainings."""
    seen: dict[tuple[str, ...], str] = {(inputs["base"],): "base"}
    for number in sorted({int(name[7 : name.index(".")]) for name in inputs if name.startswith("operand")}):
        key = tuple(value for name, value in inputs.items() if name.startswith(f"operand{number}."))
        if key in seen:
            raise RecipeError(
                f"operands.{number} is the same model as {seen[key]}; ratatouille averages several fine-tunings on the "
                "target task, each begun from another auxiliary one: expected different models (linear takes any)"
            )
        seen[key] = f"operands.{number}"


def check_residual(recipe: MergeRecipe, inputs: Mapping[str, str], layouts: Mapping[Path, Layout]) -> list[str]:
    """Return remarks on how base and instruct model were found to stem from the residual's base; raise otherwise.

    By provenance, or by the correlation of a sketch of the weights; `allow: [base]` goes on without.
    """
    operand = recipe.operands[0]
    if operand.model is None or operand.minus is None:  # `check_number` has refused it
        return []
    origin = layouts[operand.minus]
    sketch, remarks = sketch_weights(origin), []
    for role, path in (("base", recipe.base), ("operands.0.model", operand.model)):
        stated = base_of(path)
        if stated is not None and stated["fingerprint"] == inputs["operand0.minus"]:
            remarks.append(f"{role}: stems from {operand.minus} by provenance")
            continue
        found = sketch_correlation(layouts[path], sketch)
        measured = "unknown" if found is None else f"{found:.3f}"
        said = f"{role} {path} against {operand.minus}: correlation of the weights sketch {measured}"
        if (found is None or found < SAME_BASE_CORRELATION) and "base" not in recipe.allow:
            raise CompatibilityError(
                f"{said}: they look like different bases; an instruction residual is instruct − base, added to an "
                "update of that same base: name the base that both come from as minus (--allow base goes on all the "
                "same)"
            )
        remarks.append(said)
    return remarks
