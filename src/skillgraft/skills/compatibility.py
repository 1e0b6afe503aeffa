"""Compatibility of a skill or adapter with a target: names, shapes, tokenizer, architecture, ties and base."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from skillgraft.adapters.peft_file import PeftAdapter, adapter_base
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.checkpoint.header import TensorInfo
from skillgraft.checkpoint.layout import Layout
from skillgraft.checkpoint.provenance import base_of
from skillgraft.checkpoint.tokenizer import rows_needed, tokenizer_identity
from skillgraft.errors import CompatibilityError
from skillgraft.skills.architecture import LM_HEAD, architecture_differences, architecture_facts
from skillgraft.skills.sketch import correlation_of_sketches, sketch_correlation
from skillgraft.skills.skill import Skill

SAME_BASE_CORRELATION = 0.5
SAME_COPY_CORRELATION = 0.95

Level = Literal["fits", "remark", "refused"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    `about` is tensors, vocabulary, ties, architecture, tokenizer, base, contents or rounding.
    """

    level: Level
    about: str
    message: str


@dataclass(frozen=True)
class BaseMatch:
    """Comparison of two bases: the same or not, the evidence in a sentence, and whether it is certain."""

    same: bool
    reason: str
    certain: bool = False


def verdict(findings: Sequence[Finding]) -> str:
    """Return `refused`, `fits with remarks` or `fits`."""
    levels = {finding.level for finding in findings}
    return "refused" if "refused" in levels else "fits with remarks" if "remark" in levels else "fits"


def check_compatibility(target_layout: Layout, skill: Skill, allow_other_base: bool = False) -> list[str]:
    """Return remarks on how the target was found to fit the skill; raise where `skill_findings` refuses it.

    Raises `CompatibilityError` with every reason.
    """
    findings = skill_findings(target_layout, skill, allow_other_base)
    raise_refusals(findings)
    return [finding.message for finding in findings if finding.level == "remark" or finding.about == "base"]


def raise_refusals(findings: Sequence[Finding]) -> None:
    """Raise one `CompatibilityError` that gives the reason of every refusal, if there is one."""
    reasons = [finding.message for finding in findings if finding.level == "refused"]
    if len(reasons) == 1:
        raise CompatibilityError(reasons[0])
    if reasons:
        raise CompatibilityError(
            f"{len(reasons)} reasons against it:" + "".join(f"\n({n}) {text}" for n, text in enumerate(reasons, 1))
        )


def skill_findings(target_layout: Layout, skill: Skill, allow_other_base: bool = False) -> list[Finding]:
    """Return everything that headers, configs, tokenizer and a few weights say of a skill on a target.

    Refused: the target lacks a tensor that the skill changes, has it in another shape or in a dtype without
    arithmetic, has another token map, states another head count, RoPE setting or tie, stores a tied pair twice of
    which the skill changes one, or has another base: by its provenance, or, without one, by the correlation of its
    weights with the skill's sketch (below 0.5). Another copy of the same base (same id, other file bytes) fits where
    that correlation is at least 0.95. A vocabulary that the target pads to more rows fits: the skill's rows count.
    `allow_other_base` turns only the refusal of another base into a remark.
    """
    findings = _tensor_findings(target_layout, skill)
    if tie := tie_problem(target_layout, skill.names):
        findings.append(Finding("refused", "ties", tie))
    findings.append(_architecture_finding(target_layout, skill))
    findings.append(_tokenizer_finding(target_layout, skill))
    findings.append(_base_finding(target_layout, skill, allow_other_base))
    return findings


def adapter_findings(target_layout: Layout, adapter: PeftAdapter) -> list[Finding]:
    """Check the headers of a PEFT adapter against a target; that its base cannot be known from it is a remark."""
    findings = adapter_tensor_findings(target_layout, adapter)
    if tie := tie_problem(target_layout, tuple(adapter.deltas)):
        findings.append(Finding("refused", "ties", tie))
    stated = adapter_base(adapter.path)
    findings.append(
        Finding(
            "remark",
            "base",
            "the skill is a PEFT adapter, which does not say on which weights it was trained"
            + (f" (it names {stated})" if stated else ""),
        )
    )
    return findings


def adapter_tensor_findings(target_layout: Layout, adapter: PeftAdapter) -> list[Finding]:
    """Return whether `target_layout` stores every tensor that the adapter changes, in its shape."""
    absent, wrong = [], []
    for name, delta in adapter.deltas.items():
        info = target_layout.tensors.get(name)
        if info is None:
            absent.append(name)
        elif info.shape != delta.shape or not info.is_float:
            wrong.append(
                f"{adapter.path}: the delta of {name!r} has shape {list(delta.shape)}, expected {list(info.shape)} "
                f"as in {target_layout.path} ({info.dtype})"
            )
    findings = []
    if absent:
        tied = " (tied to the embedding)" if absent[0] == LM_HEAD else ""
        findings.append(
            Finding(
                "refused",
                "tensors",
                f"{adapter.path} adapts {absent[0]!r}{tied}, which {target_layout.path} does not store"
                f"{_and_more(absent)}; expected an adapter on this model",
            )
        )
    if wrong:
        message = f"{wrong[0]}{_and_more(wrong)}; take the model that the adapter was trained on"
        findings.append(Finding("refused", "tensors", message))
    return findings or [Finding("fits", "tensors", f"all {len(adapter.deltas)} tensors are there, in their shapes")]


def tie_problem(layout: Layout, changed: Collection[str]) -> str | None:
    """Return why changing only `changed` would break a tied pair that the target stores twice; None if it does not."""
    if not architecture_facts(layout).tie_word_embeddings or LM_HEAD not in layout.tensors:
        return None
    shape = layout.tensors[LM_HEAD].shape
    for name, info in layout.tensors.items():
        if name.endswith("embed_tokens.weight") and info.shape == shape and (name in changed) != (LM_HEAD in changed):
            one, other = (name, LM_HEAD) if name in changed else (LM_HEAD, name)
            return (
                f"{layout.path} ties {name!r} and {LM_HEAD!r} but stores both, and only {one!r} would change: "
                f"{other!r} would keep its old values; save the target again with save_pretrained, which stores one"
            )
    return None


def match_base(target_layout: Layout, skill: Skill) -> BaseMatch:
    """Return whether the target has the skill's base: by provenance where both have it, else by the weights' sketch."""
    expected = skill.manifest.base
    stated = base_of(target_layout.path)
    if stated is not None and stated["fingerprint"] == expected.fingerprint:
        return BaseMatch(True, f"same base by provenance: {expected.id or expected.fingerprint}", certain=True)
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
        reason = f"{lacking}: the target is the skill's own base or SFT model, by fingerprint"
        return BaseMatch(True, reason, certain=True)
    if correlation is None:
        return BaseMatch(False, f"{lacking}, and no matrix could be compared with the skill's sketch")
    if correlation < SAME_BASE_CORRELATION:
        return BaseMatch(False, f"{lacking}, and it looks like another base: weights sketch correlation {measured}")
    return BaseMatch(True, f"{lacking}: base recognised by weights sketch, correlation {measured}")


def match_skills(one: Skill, other: Skill) -> BaseMatch:
    """Return whether two skills have one base: by what their manifests name, else by their sketches.

    A manifest whose base is not known names the SFT model in its place.
    """
    first, second = one.manifest, other.manifest
    named = ({first.base.fingerprint, first.sft.fingerprint}, {second.base.fingerprint, second.sft.fingerprint})
    known = first.base_is_known and second.base_is_known
    if first.base.fingerprint == second.base.fingerprint or (not known and named[0] & named[1]):
        return BaseMatch(True, f"{one.path} and {other.path} are skills of one base by fingerprint", certain=True)
    correlation = correlation_of_sketches(first.sketch, second.sketch)
    measured = "unknown" if correlation is None else f"{correlation:.3f}"
    if known:
        copies = first.base.id is not None and first.base.id == second.base.id
        if copies and (correlation or 0.0) >= SAME_COPY_CORRELATION:
            return BaseMatch(True, f"same base {first.base.id} in two copies; correlation of the sketches: {measured}")
        return BaseMatch(
            False,
            f"they are skills of another base: {first.base.fingerprint} and {second.base.fingerprint}; correlation of "
            f"the weights sketches: {measured}",
        )
    lacking = " and ".join(str(skill.path) for skill in (one, other) if not skill.manifest.base_is_known)
    unknown = f"the base of {lacking} is not recorded"
    if correlation is None:
        return BaseMatch(False, f"{unknown}, and no matrix of their weights sketches could be compared")
    if correlation < SAME_BASE_CORRELATION:
        return BaseMatch(
            False, f"{unknown}, and they look like skills of two bases: weights sketches correlate {measured}"
        )
    return BaseMatch(True, f"{unknown}: one base recognised by the weights sketches, correlation {measured}")


def _base_finding(layout: Layout, skill: Skill, allowed: bool) -> Finding:
    match = match_base(layout, skill)
    if match.same:
        return Finding("fits" if match.certain else "remark", "base", match.reason)
    if allowed:
        return Finding("remark", "base", f"{match.reason}: allowed explicitly")
    return Finding(
        "refused",
        "base",
        f"{layout.path} does not fit the skill {skill.path}: {match.reason}; a skill vector is meaningful "
        "on fine-tunes of its own base: use one, or allow another base explicitly (inject: allow_other_base or "
        "--allow-other-base; merge: --allow base)",
    )


def _architecture_finding(layout: Layout, skill: Skill) -> Finding:
    differences = architecture_differences(architecture_facts(layout), skill.manifest.architecture)
    if not differences:
        return Finding("fits", "architecture", "head counts, RoPE settings and ties are the skill's")
    return Finding(
        "refused",
        "architecture",
        f"{layout.path} does not fit the skill {skill.path}: {'; '.join(differences)}; expected another "
        "fine-tune of the skill's base, with the same config",
    )


def _tokenizer_finding(layout: Layout, skill: Skill) -> Finding:
    identity = tokenizer_identity(layout.path)
    if identity == skill.manifest.tokenizer:
        return Finding("fits", "tokenizer", "same tokens with the same ids")
    return Finding(
        "refused",
        "tokenizer",
        f"{layout.path} has another tokenizer than the skill {skill.path}: token map {identity}, expected "
        f"{skill.manifest.tokenizer}; use a target whose tokens and ids are the skill's",
    )


def _tensor_findings(layout: Layout, skill: Skill) -> list[Finding]:
    """Compare names, shapes and dtypes; of many tensors with one fault the first is named and the others counted."""
    absent: list[str] = []
    shapes: list[str] = []
    integers: list[str] = []
    padded: list[str] = []
    for name in skill.names:
        info = layout.tensors.get(name)
        if info is None:
            absent.append(name)
        elif info.shape != skill.shape(name):
            (padded if _is_padding(layout, skill, info) else shapes).append(name)
        elif not info.is_float:
            integers.append(name)
    findings = []
    if absent:
        tied = " (it is tied to the embedding there)" if absent[0] == LM_HEAD else ""
        message = (
            f"{layout.path} has no tensor {absent[0]!r}{tied}, which the skill {skill.path} changes"
            f"{_and_more(absent)}; expected a checkpoint of the skill's architecture"
        )
        findings.append(Finding("refused", "tensors", message))
    if shapes:
        name = shapes[0]
        message = (
            f"{layout.path}: tensor {name!r} has shape {list(layout.tensors[name].shape)}, expected "
            f"{list(skill.shape(name))} as in the skill {skill.path}{_and_more(shapes)}; use a target of the same "
            "size and vocabulary"
        )
        findings.append(Finding("refused", "tensors", message))
    if integers:
        name = integers[0]
        message = (
            f"{layout.path}: tensor {name!r} is stored as {layout.tensors[name].dtype}, expected a float dtype"
            f"{_and_more(integers)}; use the checkpoint's bfloat16, float16 or float32 version"
        )
        findings.append(Finding("refused", "tensors", message))
    findings += [
        Finding(
            "remark",
            "vocabulary",
            f"the target pads its vocabulary: {name!r} has {layout.tensors[name].shape[0]} rows, the skill "
            f"{skill.shape(name)[0]}; the rows past the skill's keep the target's values",
        )
        for name in padded
    ]
    if findings and findings[0].level == "refused":
        return findings
    return [Finding("fits", "tensors", f"all {len(skill.names)} tensors are there, in their shapes"), *findings]


def _is_padding(layout: Layout, skill: Skill, info: TensorInfo) -> bool:
    """Return whether the target's tensor is the skill's vocabulary with further rows, none of which has a token."""
    shape = skill.shape(info.name)
    if len(shape) != 2 or info.shape[1:] != shape[1:] or not info.is_float or info.shape[0] < shape[0]:
        return False
    sizes = (architecture_facts(layout).vocab_size, skill.manifest.architecture.vocab_size)
    return sizes == (info.shape[0], shape[0]) and shape[0] >= rows_needed(layout.path)


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more such)" if len(names) > 1 else ""
