"""The first pass of each method that needs one, and what a report says of its findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from skillgraft.arithmetic import first_pass, score_pass
from skillgraft.arithmetic.methods.mediator import LayerConflict
from skillgraft.arithmetic.plan import Plan
from skillgraft.arithmetic.stream import Machine

PASSES: dict[str, Callable[[Plan, Machine], dict[str, Any]]] = {
    "gram": first_pass.gather_facts,
    "thresholds": first_pass.gather_facts,
    "bands": score_pass.bands,
    "balance": score_pass.balances,
    "conflicts": score_pass.conflicts,
}


def gather_facts(plan: Plan, machine: Machine) -> dict[str, Any]:
    """Return what the plan's method must know of each changed tensor, by name; nothing for most methods."""
    return PASSES[plan.method.first_pass](plan, machine) if plan.method.first_pass is not None else {}


def findings(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a report that says what the first pass found: `layers`, each with its conflict, if any."""
    layers = dict.fromkeys(
        fact[0] for fact in facts.values() if isinstance(fact, tuple) and isinstance(fact[0], LayerConflict)
    )
    return {"layers": [vars(layer) for layer in layers]} if layers else {}
