"""Whether a skill fits a target: names, shapes, tokenizer, architecture and base, all before any arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.checkpoint.layout import Layout
from skillgraft.checkpoint.provenance import base_of
from skillgraft.checkpoint.tokenizer import tokenizer_identity
from skillgraft.errors import CompatibilityError
from skillgraft.skills.architecture import LM_HEAD, architecture_differences, architecture_facts
from skillgraft.skills.sketch import sketch_correlation
from skillgraft.skills.skill import Skill

SAME_BASE_CORRELATION = 0.5
SAME_COPY_CORRELATION = 0.95


@dataclass(frozen=True)
class BaseMatch:
    """Whether a target has the skill's base, and the sentence that says how that is known."""

    same: bool
    reason: str


def check_compatibility(target_layout: Layout, skill: Skill, allow_other_base: bool = False) -> list[str]:
    """Return remarks on how the target was found to fit the skill; raise when it does not.

    Raises `CompatibilityError` when the target lacks a tensor that the skill changes, has it in another shape or in a
    dtype without arithmetic, has another token map, states another head count, RoPE setting or tie, or has another
    base: by its provenance, or, without one, by the correlation of its weights with the skill's sketch (below 0.5).
    Another copy of the same base (same id, other file bytes) fits where that correlation is at least 0.95.
    `allow_other_base` turns only the refusal of another base into a remark.
    """
    _check_tensors(target_layout, skill)
    facts = architecture_facts(target_layout)
    if differences := architecture_differences(facts, skill.manifest.architecture):
        raise CompatibilityError(
            f"{target_layout.path} does not fit the skill {skill.path}: {'; '.join(differences)}; expected another "
            "fine-tune of the skill's base, with the same config"
        )
    identity = tokenizer_identity(target_layout.path)
    if identity != skill.manifest.tokenizer:
        raise CompatibilityError(
            f"{target_layout.path} has another tokenizer than the skill {skill.path}: token map {identity}, expected "
            f"{skill.manifest.tokenizer}; use a target whose tokens and ids are the skill's"
        )
    match = match_base(target_layout, skill)
    if match.same:
        return [match.reason]
    if not allow_other_base:
        raise CompatibilityError(
            f"{target_layout.path} does not fit the skill {skill.path}: {match.reason}; a skill vector is meaningful "
            "on fine-tunes of its own base: use one, or allow another base explicitly (inject: allow_other_base or "
            "--allow-other-base; merge: --allow base)"
        )
    return [f"{match.reason}: allowed explicitly"]


def match_base(target_layout: Layout, skill: Skill) -> BaseMatch:
    """Return whether the target has the skill's base: by provenance where both have it, else by the weights' sketch."""
    expected = skill.manifest.base
    stated = base_of(target_layout.path)
    if stated is not None and stated["fingerprint"] == expected.fingerprint:
        return BaseMatch(True, f"same base by provenance: {expected.id or expected.fingerprint}")
    correlation = sketch_correlation(target_layout, skill.manifest.sketch)
    measured = "unknown" if correlation is None else f"{correlation:.3f}"
    if stated is not None and skill.manifest.base_is_known:
        if stated["id"] is not None and stated["id"] == expected.id and (correlation or 0.0) >= SAME_COPY_CORRELATION:
            return BaseMatch(
                True,
                f"same base {expected.id} in another copy (other shards, dtype or conversion); correlation of the "
                f"weights sketch: {measured}",
            )
        return BaseMatch(
            False,
            f"its provenance names the base {stated['id'] or 'without id'} ({stated['fingerprint']}), expected "
            f"{expected.id or 'without id'} ({expected.fingerprint}); correlation of the weights sketch: {measured}",
        )
    lacking = "target has no provenance" if stated is None else "the skill's base is not recorded"
    if fingerprint_checkpoint(target_layout.path) in (expected.fingerprint, skill.manifest.sft.fingerprint):
        return BaseMatch(True, f"{lacking}: the target is the skill's own base or SFT model, by fingerprint")
    if correlation is None:
        return BaseMatch(False, f"{lacking}, and no matrix could be compared with the skill's sketch")
    if correlation < SAME_BASE_CORRELATION:
        return BaseMatch(False, f"{lacking}, and it looks like another base: weights sketch correlation {measured}")
    return BaseMatch(True, f"{lacking}: base recognised by weights sketch, correlation {measured}")


def _check_tensors(layout: Layout, skill: Skill) -> None:
    for name in skill.names:
        info = layout.tensors.get(name)
        if info is None:
            tied = " (it is tied to the embedding there)" if name == LM_HEAD else ""
            raise CompatibilityError(
                f"{layout.path} has no tensor {name!r}{tied}, which the skill {skill.path} changes; expected a "
                "checkpoint of the skill's architecture"
            )
        if info.shape != skill.shape(name):
            raise CompatibilityError(
                f"{layout.path}: tensor {name!r} has shape {list(info.shape)}, expected {list(skill.shape(name))} "
                f"as in the skill {skill.path}; use a target of the same size and vocabulary"
            )
        if not info.is_float:
            raise CompatibilityError(
                f"{layout.path}: tensor {name!r} is stored as {info.dtype}, expected a float dtype; use the "
                "checkpoint's bfloat16, float16 or float32 version"
            )
