"""Rounding loss of a skill in a target's stored dtype, estimated from a sample of its tensors."""

from __future__ import annotations

import math

from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.checkpoint.layout import Layout
from skillgraft.skills.compatibility import Finding
from skillgraft.skills.sketch import evenly_spaced
from skillgraft.skills.skill import Skill

SAMPLED_TENSORS = 8
MOST_ELEMENTS = 1 << 26
NOTICED_SHARE = 0.01


def rounding_loss(target: Layout, skill: Skill, scale: float = 1.0) -> float | None:
    """Return the estimate of ‖stored − exact‖ / ‖λ·v‖ when θ + λ·v is stored in the target's own dtypes.

    Taken over 8 evenly spaced tensors of the skill that are no larger than 2²⁶ elements; None when none can be taken.
    Memory holds one tensor.
    """
    names = [
        name
        for name in sorted(skill.names)
        if name in target.tensors
        and target.tensors[name].shape == skill.shape(name)
        and target.tensors[name].elements <= MOST_ELEMENTS
    ]
    lost, norms = [], []
    for position in evenly_spaced(len(names), SAMPLED_TENSORS):
        name = names[position]
        stored = target.read(name)
        change = skill.delta(name).double() * scale
        exact = stored.double() + change
        lost.append((exact.to(stored.dtype).double() - exact).square().sum().item())
        norms.append(change.square().sum().item())
    total = math.fsum(norms)
    return math.sqrt(math.fsum(lost) / total) if total > 0 else None


def rounding_finding(target: Layout, skill: Skill) -> Finding | None:
    """Return the remark on a target that stores less than fp32; None where rounding costs under 1% of the skill."""
    narrow = {target.tensors[name].dtype for name in skill.names if name in target.tensors}
    if all(DTYPE_BYTES[code] >= 4 for code in narrow):
        return None
    share = rounding_loss(target, skill)
    if share is None or not share >= NOTICED_SHARE:
        return None
    return Finding(
        "remark",
        "rounding",
        f"about {share:.0%} of the skill is lost to rounding in {' and '.join(sorted(narrow))} (estimated from a "
        "sample, λ = 1); inject --dtype float32 keeps it",
    )
