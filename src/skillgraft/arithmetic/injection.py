"""Injection: θ = θ_target + λ·v, streamed into a new checkpoint that otherwise is the target's.

Formula: Parametric Skill Transfer, arXiv 2601.11258. Departure: the report says how much of λ·v survived the rounding
to the stored dtype, which for bf16 can be a noticeable part of an RL delta.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skillgraft.arithmetic.leaves import Stored
from skillgraft.arithmetic.merge_recipe import TaskArithmetic
from skillgraft.arithmetic.merging import write
from skillgraft.arithmetic.methods import METHODS
from skillgraft.arithmetic.plan import (
    OUTPUT_DTYPES,
    Lookup,
    Operand,
    Plan,
    TensorPlan,
    Term,
    adapter_fingerprint,
    check_tie,
    of_adapter,
    of_skill,
    versions_of,
)
from skillgraft.arithmetic.stream import Progress
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.header import TensorSpec
from skillgraft.checkpoint.layout import Layout, read_layout
from skillgraft.checkpoint.provenance import base_of
from skillgraft.checkpoint.weights import planned_dtypes
from skillgraft.errors import CheckpointError, RecipeError, did_you_mean
from skillgraft.skills.compatibility import adapter_findings, check_compatibility, match_base, raise_refusals
from skillgraft.skills.library import resolve_skill
from skillgraft.skills.peft_adapter import is_adapter, read_adapter
from skillgraft.skills.skill import Skill, load_skill

NORM_TOLERANCE = 1e-3


def inject(
    target: str | os.PathLike[str],
    skill: Skill | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    allow_other_base: bool = False,
    dtype: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write θ = θ_target + λ·v as the new checkpoint `out` and return a report.

    `skill` is a skill, its directory or name in the library, or a PEFT LoRA adapter directory (then v = B·A). λ is
    `scale` (any finite number; 0 keeps the target bit for bit). `dtype` (float32, bfloat16, float16, float64) stores
    all float tensors and names itself in the config; None keeps each tensor's own. Config, tokenizer, generation
    config, chat template, other small files and every tensor that the skill does not name are the target's.
    Arithmetic is in fp64 with one rounding.

    The report: `scale`, `dtype`, `remarks` (how the base was recognised), `survived_rounding` =
    1 − ‖stored − exact‖ / ‖λ·v‖ over all tensors (1.0 for λ = 0; below 0 where rounding an fp32 target to `dtype`
    costs more than the step), `worst` (`name` and `survived_rounding` of one tensor) and `tensors` (per name:
    `norm` = ‖λ·v‖ and `survived_rounding`).

    Raises `CompatibilityError` (see `check_compatibility`; NaN, infinity or overflow, naming the tensor),
    `CheckpointError` (a skill whose tensors no longer have the norms of its manifest), `MissingPathError`,
    `OutputExistsError`, `StorageError`, and `RecipeError` for a scale or dtype that makes no sense.
    Source: arXiv 2601.11258.
    """
    (report,) = _inject(target, skill, Path(out), {"": scale}, allow_other_base, dtype, threads, device, progress)
    return report


def inject_scales(
    target: str | os.PathLike[str],
    skill: Skill | str | os.PathLike[str],
    out: str | os.PathLike[str],
    scales: Sequence[float],
    *,
    allow_other_base: bool = False,
    dtype: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Write one checkpoint per λ into the new directory `out` as `scale-<λ>`, reading target and skill once.

    Returns the reports by folder. All λ appear together; a killed sweep goes on. Else as `inject`.
    """
    if not scales:
        raise RecipeError("scales is empty, expected numbers such as 0,0.25,0.5,1")
    named = {f"scale-{_short(_checked(scale))}": scale for scale in scales}
    if len(named) != len(scales):
        raise RecipeError(f"scales {list(scales)} name one λ twice; expected each once")
    reports = _inject(target, skill, Path(out), named, allow_other_base, dtype, threads, device, progress)
    return dict(zip(named, reports, strict=True))


def _inject(
    target: str | os.PathLike[str],
    skill: Skill | str | os.PathLike[str],
    out: Path,
    outputs: dict[str, float],
    allow_other_base: bool,
    dtype: str | None,
    threads: int | None,
    device: str,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    for scale in outputs.values():
        _checked(scale)
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise RecipeError(f"dtype {dtype!r} can't store a checkpoint{did_you_mean(dtype, OUTPUT_DTYPES)}")
    layout = read_layout(target)
    said: list[str] = []
    if not isinstance(skill, Skill):
        skill, remark = resolve_skill(skill)
        said = [remark] if remark else []
    if not isinstance(skill, Skill) and is_adapter(skill):
        adapter = read_adapter(skill)
        findings = adapter_findings(layout, adapter)
        raise_refusals(findings)
        remarks = said + [finding.message for finding in findings if finding.level == "remark"]
        plan = _plan(layout, of_adapter(adapter), remarks, adapter_fingerprint(adapter), dtype)
        return write(plan, out, outputs, "inject", threads, device, progress=progress)
    loaded = skill if isinstance(skill, Skill) else load_skill(skill)
    remarks = said + check_compatibility(layout, loaded, allow_other_base)
    plan = _plan(layout, of_skill(loaded), remarks, fingerprint_file(loaded.weights_file), dtype, allow_other_base)
    return write(
        plan,
        out,
        outputs,
        "inject",
        threads,
        device,
        progress=progress,
        base=_base(layout, loaded),
        check=_norms(loaded),
    )


def _short(scale: float) -> str:
    """Return the shortest text that is this number: 1, 0.25, 0."""
    return f"{scale:g}" if float(f"{scale:g}") == scale and scale != 0 else repr(scale) if scale else "0"


def _checked(scale: Any) -> float:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise RecipeError(f"scale is {scale!r}, expected a finite number such as 1.0")
    return float(scale)


def _plan(
    layout: Layout,
    lookup: Lookup,
    remarks: list[str],
    fingerprint: str,
    dtype: str | None,
    allow_other_base: bool = False,
) -> Plan:
    dtypes = planned_dtypes(layout, OUTPUT_DTYPES[dtype] if dtype else None)
    tensors = []
    for name, info in layout.tensors.items():
        leaf = lookup(name)
        operands = (Operand(0, 1.0, (Term(1, leaf),)),) if leaf is not None and info.elements else ()
        tensors.append(TensorPlan(TensorSpec(name, dtypes[name], info.shape), Stored(info), operands))
    check_tie(layout, tensors)
    inputs = {"target": fingerprint_checkpoint(layout.path), "skill": fingerprint}
    settings = {"dtype": dtype, "allow_other_base": allow_other_base}
    method = METHODS["task_arithmetic"]
    return Plan(
        layout, method, TaskArithmetic(), tuple(tensors), inputs, settings, tuple(remarks), dtype, versions_of(tensors)
    )


def _norms(skill: Skill) -> Any:
    """Return the check that every delta still has the norm that its manifest says."""

    def check(name: str, norm: float) -> None:
        expected = skill.norm(name)
        # "not <=" rather than ">": NaN must not pass.
        if not abs(norm - expected) <= NORM_TOLERANCE * expected:
            raise CheckpointError(
                f"{skill.path}: the delta of {name!r} has norm {norm:.6g}, expected {expected:.6g} from skill.json; "
                "the skill is damaged: extract or download it again"
            )

    return check


def _base(layout: Layout, skill: Skill) -> dict[str, str | None]:
    """Return the base to record: the target's own, else the skill's where the weights showed it, else unknown."""
    stated = base_of(layout.path)
    if stated is not None:
        return stated
    if skill.manifest.base_is_known and match_base(layout, skill).same:
        return {"id": skill.manifest.base.id, "fingerprint": skill.manifest.base.fingerprint}
    return {"id": None, "fingerprint": None}
