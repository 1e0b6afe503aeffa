"""Tensor sources by name, for a checkpoint, an adapter and a skill."""

from __future__ import annotations

from collections.abc import Callable

from skillgraft.adapters.peft_file import PeftAdapter
from skillgraft.arithmetic.tensor_sources import Product, Stored, TensorSource, source_of
from skillgraft.checkpoint.layout import Layout
from skillgraft.skills.forms import stored_names
from skillgraft.skills.skill import Skill

Lookup = Callable[[str], TensorSource | None]
"""Gives the source of the tensor of a name, None where there is none."""


def of_model(layout: Layout) -> Lookup:
    """Return the lookup of a checkpoint's tensors."""
    return lambda name: Stored(layout.tensors[name]) if name in layout.tensors else None


def of_adapter(adapter: PeftAdapter) -> Lookup:
    """Return the lookup of an adapter's deltas."""

    def find(name: str) -> TensorSource | None:
        delta = adapter.deltas.get(name)
        return Product(delta.a, delta.b, delta.scaling) if delta is not None else None

    return find


def of_skill(skill: Skill) -> Lookup:
    """Return the lookup of a skill's deltas."""

    def find(name: str) -> TensorSource | None:
        entry = skill.manifest.tensors.get(name)
        if entry is None:
            return None
        return source_of(name, entry, [skill.stored[key] for key in stored_names(name, entry.form)])

    return find
