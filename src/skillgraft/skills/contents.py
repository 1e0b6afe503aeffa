"""Checks of a skill's numbers: no NaN, no infinity, no factors whose product overflows float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skillgraft.checkpoint.tensor_io import CHUNK_BYTES, count_not_finite
from skillgraft.skills.compatibility import Finding
from skillgraft.skills.forms import stored_names
from skillgraft.skills.skill import Skill

if TYPE_CHECKING:
    from jaxtyping import Float

_ROWS = 64


def contents_finding(skill: Skill) -> Finding | None:
    """Return the refusal of a skill that holds numbers which merging would refuse; None where all can be used."""
    problems = [problem for name in skill.names if (problem := content_problem(skill, name)) is not None]
    if not problems:
        return None
    more = f" (and {len(problems) - 1} more such)" if len(problems) > 1 else ""
    message = f"{skill.path}: {problems[0]}{more}; the skill is damaged: extract, pack or download it again"
    return Finding("refused", "contents", message)


def content_problem(skill: Skill, name: str) -> str | None:
    """Return the problem with the numbers of one delta, None without one; streamed, except for factors."""
    entry, buffer = skill.entry(name), memoryview(bytearray(CHUNK_BYTES))
    for info in (skill.stored[key] for key in stored_names(name, entry.form)):
        if info.is_float and (wrong := sum(count_not_finite(info, buffer))):
            return f"the delta of {name!r} holds {wrong} numbers that are NaN or infinite"
    if entry.rank is not None and _overflows(*skill.product(name)):
        return f"the delta of {name!r} overflows float32 when its factors are multiplied"
    return None


def _overflows(a: Float[Tensor, "rank in_features"], b: Float[Tensor, "out_features rank"]) -> bool:
    """Return whether an element of b @ a is beyond fp32; multiplied only where ‖row‖·‖column‖ does not rule it out."""
    if not a.numel() or not b.numel():
        return False
    a, most = a.double(), torch.finfo(torch.float32).max
    if a.norm(dim=0).max() * b.double().norm(dim=1).max() <= most:
        return False
    return any(bool(((rows.double() @ a).abs() > most).any()) for rows in b.split(_ROWS))
