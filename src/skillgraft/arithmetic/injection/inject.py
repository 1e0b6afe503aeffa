"""Inject a skill vector: θ = θ_target + λ·v, streamed into a new checkpoint that otherwise is the target's.

Formula: Parametric Skill Transfer, arXiv 2601.11258. Departure: the report says how much of λ·v survived the rounding
to the stored dtype, which for bf16 can be a noticeable part of an RL delta. Several skills are combined into one v by a
merging method, in the same pass; a skill that was injected before can be taken out again (`removal`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from skillgraft.adapters import read_adapter
from skillgraft.adapters.peft_file import is_adapter
from skillgraft.arithmetic.in_memory import operand_norms
from skillgraft.arithmetic.injection.ledger import (
    Injected,
    LedgerEntry,
    Record,
    read_record,
    recognised,
    write_ledger,
    write_own_provenance,
)
from skillgraft.arithmetic.injection.removal import plan_of_original, plan_removal, removal_report
from skillgraft.arithmetic.merge_recipe import check_vector_method, parse_merge_recipe
from skillgraft.arithmetic.merge_schema import MergeRecipe
from skillgraft.arithmetic.merging import Recorder, engine_for, write
from skillgraft.arithmetic.plan import OUTPUT_DTYPES, Plan, plan_merge
from skillgraft.arithmetic.stream import Engine, Sums
from skillgraft.checkpoint.layout import Layout
from skillgraft.checkpoint.provenance import base_of
from skillgraft.errors import CheckpointError, RecipeError, did_you_mean
from skillgraft.skills.compatibility import adapter_findings, match_base
from skillgraft.skills.library import resolve_skill
from skillgraft.skills.skill import Skill, load_skill
from skillgraft.support.cache import note_place
from skillgraft.support.progress import Progress

NORM_TOLERANCE = 1e-3

SkillLike = Skill | str | os.PathLike[str]
"""A skill, its directory or name in the library, or a PEFT LoRA adapter's directory."""


def inject(
    target: str | os.PathLike[str],
    skill: SkillLike | Sequence[tuple[SkillLike, float]],
    out: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    scales: Mapping[str, float] | None = None,
    method: str = "task_arithmetic",
    parameters: Mapping[str, Any] | None = None,
    original: str | os.PathLike[str] | None = None,
    allow_other_base: bool = False,
    dtype: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Inject a skill: write θ = θ_target + λ·v as the new checkpoint `out` and return a report.

    `skill` is a skill, its directory or name in the library, or a PEFT LoRA adapter directory (then v = B·A); or
    several, `[(skill, 0.5), (other, 1.0)]`: then v is what `method` (any of `methods.METHODS` on vectors, with
    `parameters`) makes of them, by default their sum with these scales. λ is `scale` (any finite number; 0 keeps the
    target bit for bit). With `scales`, for one skill, λ of a tensor is `scale` times the number of the first pattern
    (`fnmatch`) that its name matches, such as `{"*.mlp.*": 0.5, "default": 1}`; `default` is 1. `dtype` (float32,
    bfloat16, float16, float64) stores all float tensors and names itself in the config; None keeps each tensor's own.
    Config, tokenizer, generation config, chat template, other small files and every tensor that no skill names are the
    target's. Arithmetic is in fp64 with one rounding.

    Scales opposite to those of the injection that made the target take the skills out again. Where precisely what was
    injected is taken out and the checkpoint from before is found, where it was last or as `original`, the result is
    that checkpoint, its own bytes; else it lies within two roundings of it.

    The report: `scale`, `dtype`, `skills` (name, fingerprint and scale of each), `remarks` (how the base was
    recognised), `survived_rounding` = 1 − ‖stored − exact‖ / ‖λ·v‖ over all tensors (1.0 for λ = 0; below 0 where
    rounding an fp32 target to `dtype` costs more than the step), `worst` (`name` and `survived_rounding` of one
    tensor), `tensors` (per name: `norm` = ‖λ·v‖ and `survived_rounding`), and `removal` where something was taken out
    (see `removal.removal_report`).

    Raises `CompatibilityError` (see `check_compatibility`; NaN, infinity or overflow, naming the tensor),
    `CheckpointError` (a skill whose tensors no longer have the norms of its manifest), `MissingPathError`,
    `OutputExistsError`, `StorageError`, and `RecipeError` for a scale, method or dtype that makes no sense.
    Source: arXiv 2601.11258.
    """
    recipe, names, remarks = _recipe(target, skill, method, parameters, dtype, allow_other_base, scales)
    plan, skills = _plan(recipe, names, remarks, allow_other_base)
    history = _history(plan, skills, _checked(scale))
    engine = engine_for(threads, device)
    known, requested, doubt, _ = history
    removal = plan_removal(
        recipe, plan, known, requested, doubt, Path(original) if original is not None else None, engine
    )
    plan = replace(plan, remarks=(*plan.remarks, *history.remarks, *(removal.remarks if removal is not None else ())))
    written, record = plan, _recorder(plan, skills, history)
    if removal is not None and removal.original is not None:
        written = plan_of_original(plan, removal)
        record = _own_recorder(written)
    (report,) = _write(written, skills, Path(out), {"": scale}, threads, device, progress, record)
    if removal is not None:
        report["removal"] = removal_report(plan, removal, scale, Path(out), engine)
    return report


def inject_scales(
    target: str | os.PathLike[str],
    skill: SkillLike | Sequence[tuple[SkillLike, float]],
    out: str | os.PathLike[str],
    scales: Sequence[float],
    *,
    method: str = "task_arithmetic",
    parameters: Mapping[str, Any] | None = None,
    allow_other_base: bool = False,
    dtype: str | None = None,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Sweep λ: write one checkpoint per λ into the new directory `out` as `scale-<λ>`, reading target and skills once.

    Returns the reports by folder. All λ appear together; a killed sweep resumes. Otherwise as `inject`, except that
    a sweep never looks for an original to return to.
    """
    if not scales:
        raise RecipeError("scales is empty, expected numbers such as 0,0.25,0.5,1")
    named = {f"scale-{_short(_checked(scale))}": scale for scale in scales}
    if len(named) != len(scales):
        raise RecipeError(f"scales {list(scales)} name one λ twice; expected each once")
    recipe, names, remarks = _recipe(target, skill, method, parameters, dtype, allow_other_base)
    plan, skills = _plan(recipe, names, remarks, allow_other_base)
    record = _recorder(plan, skills, _history(plan, skills, 1.0))
    reports = _write(plan, skills, Path(out), named, threads, device, progress, record)
    return dict(zip(named, reports, strict=True))


def plan_injection(
    target: str | os.PathLike[str],
    skill: SkillLike | Sequence[tuple[SkillLike, float]],
    *,
    allow_other_base: bool = False,
    threads: int | None = None,
) -> Plan:
    """Plan target + λ·v for callers that apply it in memory; λ is chosen later.

    Arguments, `settings` and `remarks` of the plan, and errors are as in `inject`.
    """
    recipe, names, remarks = _recipe(target, skill, "task_arithmetic", None, None, allow_other_base)
    plan, skills = _plan(recipe, names, remarks, allow_other_base)
    _check_norms(plan, skills, engine_for(threads, "cpu"))
    return plan


def _recipe(
    target: str | os.PathLike[str],
    skill: SkillLike | Sequence[tuple[SkillLike, float]],
    method: str,
    parameters: Mapping[str, Any] | None,
    dtype: str | None,
    allow_other_base: bool,
    scales: Mapping[str, float] | None = None,
) -> tuple[MergeRecipe, list[str], list[str]]:
    """Return the merge that the injection is, the skills' names in its order, and remarks on finding them."""
    check_vector_method(method)
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise RecipeError(f"dtype {dtype!r} can't store a checkpoint{did_you_mean(dtype, OUTPUT_DTYPES)}")
    operands: list[dict[str, Any]] = []
    names, remarks = [], []
    for each, scale in _pairs(skill):
        path, remark = (each.path, None) if isinstance(each, Skill) else resolve_skill(each)
        remarks += [remark] if remark else []
        kind = "adapter" if not isinstance(each, Skill) and is_adapter(path) else "skill"
        operands.append({kind: str(path), **({} if scale == 1 else {"weight": scale})})
        names.append(path.resolve().name)
    if scales is not None:
        if len(operands) > 1 or method != "task_arithmetic":
            raise RecipeError("scales: λ by pattern is for one skill, added as it is; leave scales out")
        if not scales:
            raise RecipeError("scales is empty, expected λ by pattern of tensor names, such as {'*.mlp.*': 0.5}")
        alone = operands[0].pop("weight", 1.0)
        operands[0]["weights"] = {pattern: alone * _checked(weight) for pattern, weight in scales.items()}
    data: dict[str, Any] = {"method": method, "base": str(Path(target)), "operands": operands}
    data |= {"parameters": dict(parameters or {}), "dtype": dtype, "allow": ["base"] if allow_other_base else []}
    return parse_merge_recipe(data, "inject"), names, remarks


def _pairs(skill: SkillLike | Sequence[tuple[SkillLike, float]]) -> list[tuple[SkillLike, float]]:
    if isinstance(skill, Skill | str | os.PathLike):
        return [(skill, 1.0)]
    pairs: list[tuple[SkillLike, float]] = []
    for pair in skill:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RecipeError(
                f"skill holds {pair!r}, expected pairs of a skill and its scale, such as ('my-skill', 0.5)"
            )
        pairs.append((pair[0], _checked(pair[1])))
    if not pairs:
        raise RecipeError("skill is an empty list, expected pairs such as ('my-skill', 0.5)")
    return pairs


def _plan(
    recipe: MergeRecipe, names: Sequence[str], remarks: Sequence[str], allow_other_base: bool
) -> tuple[Plan, list[Skill | None]]:
    """Return the plan, named as an injection, and the skills of its operands (None for an adapter)."""
    try:
        plan = plan_merge(recipe)
    except RecipeError as error:  # an injection's patterns are called scales
        raise RecipeError(str(error).replace("operands.0.weights", "scales")) from error
    skills = [load_skill(operand.skill) if operand.skill is not None else None for operand in recipe.operands]
    inputs, entries = {"target": plan.inputs["base"]}, []
    for number, (operand, name) in enumerate(zip(recipe.operands, names, strict=True)):
        fingerprint = plan.inputs[f"operand{number}.{'adapter' if operand.skill is None else 'skill'}"]
        inputs["skill" if len(names) == 1 else f"skill{number}"] = fingerprint
        entries.append({"name": name, "fingerprint": fingerprint, "scale": operand.weight})
    settings = {
        "method": recipe.method,
        "parameters": recipe.parameters.model_dump(),
        **({"scales": [list(pair) for pair in scales.items()]} if (scales := recipe.operands[0].weights) else {}),
        "skills": entries,
        "dtype": recipe.dtype,
        "allow_other_base": allow_other_base,
    }
    adapters = [
        read_adapter(operand.adapter, plan.target) for operand in recipe.operands if operand.adapter is not None
    ]
    findings = [finding for adapter in adapters for finding in adapter_findings(plan.target, adapter)]
    all_remarks = (*remarks, *plan.remarks, *(finding.message for finding in findings if finding.level == "remark"))
    return replace(plan, inputs=inputs, settings=settings, remarks=all_remarks), skills


class _History(NamedTuple):
    """The target's record, what is requested now, why the record can't be trusted, and remarks on it."""

    known: Record | None
    requested: Injected
    doubt: str | None
    remarks: tuple[str, ...]


def _history(plan: Plan, skills: Sequence[Skill | None], scale: float) -> _History:
    known, remarks = read_record(plan.target.path)
    skill_entries, method, parameters = (plan.settings[key] for key in ("skills", "method", "parameters"))
    entries = tuple(LedgerEntry(**each) for each in skill_entries)
    scales = tuple((pattern, weight) for pattern, weight in plan.settings.get("scales", ())) or None
    requested = Injected(skills=entries, method=method, parameters=parameters, scale=scale, scales=scales)
    if known is None:
        return _History(None, requested, None, remarks)
    own = zip(requested.skills, skills, strict=True)
    same = {entry.fingerprint: source for entry, skill in own if skill is not None and (source := _source(skill))}
    meant = recognised(requested, known, same)
    doubt = None
    if known.ledger.weights != plan.inputs["target"]:
        doubt = f"{plan.target.path} changed, or was saved anew, since the injection wrote it"
    elif meant != requested:
        doubt = "only its manifest says that a repacked skill is what was injected"
    return _History(known, meant, doubt, remarks)


def _source(skill: Skill) -> str | None:
    """Return the fingerprint of the skill that this one is a packed copy of, without any error by its manifest."""
    packing = skill.manifest.packing
    exact = packing is not None and skill.manifest.reconstruction_error == 0 and not any(packing.errors.values())
    return packing.source if packing is not None and exact else None


def _recorder(plan: Plan, skills: Sequence[Skill | None], history: _History) -> Recorder:
    known, requested, doubt, _ = history
    base = _base(plan.target, skills)

    def record(directory: Path, made_by: Mapping[str, Any], losses: Sums) -> None:
        write_ledger(
            directory, plan, known, requested.at(float(made_by["scale"])), doubt is None, losses, made_by, base
        )

    return record


def _own_recorder(plan: Plan) -> Recorder:
    original, fingerprint, cast = plan.target.path, plan.settings["original"], plan.dtype is not None
    return lambda directory, _made_by, _losses: write_own_provenance(directory, original, fingerprint, cast)


def _write(
    plan: Plan,
    skills: Sequence[Skill | None],
    out: Path,
    outputs: dict[str, float],
    threads: int | None,
    device: str,
    progress: Progress | None,
    record: Recorder,
) -> list[dict[str, Any]]:
    for scale in outputs.values():
        _checked(scale)
    check = None
    if len(skills) == 1 and plan.method.name == "task_arithmetic":
        check = _norm_check(skills[0], plan)  # the stream computes the norms anyway
    else:
        _check_norms(plan, skills, engine_for(threads, device))
    reports = write(plan, out, outputs, "inject", threads, device, progress=progress, check=check, record=record)
    note_place(plan.settings.get("original") or plan.inputs["target"], plan.target.path)
    return [{**report, "skills": plan.settings["skills"]} for report in reports]


def _short(scale: float) -> str:
    """Return the shortest text that is this number: 1, 0.25, 0."""
    return f"{scale:g}" if float(f"{scale:g}") == scale and scale != 0 else repr(scale) if scale else "0"


def _checked(scale: Any) -> float:
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise RecipeError(f"scale is {scale!r}, expected a finite number such as 1.0")
    return float(scale)


def _norm_check(skill: Skill | None, plan: Plan) -> Callable[[str, float], None] | None:
    """Return the check that every delta, times its weight, still has the norm that its manifest says."""
    if skill is None:
        return None
    weights = {tensor.spec.name: tensor.operands[0].weight for tensor in plan.tensors if tensor.operands}
    return lambda name, norm: _check_norm(skill, name, norm / abs(weights[name]))


def _check_norms(plan: Plan, skills: Sequence[Skill | None], engine: Engine) -> None:
    for (name, number), norm in operand_norms(plan, engine).items():
        skill = skills[number]
        if skill is not None:
            _check_norm(skill, name, norm)


def _check_norm(skill: Skill, name: str, norm: float) -> None:
    expected = skill.norm(name)
    # "not <=" rather than ">": NaN must not pass.
    if not abs(norm - expected) <= NORM_TOLERANCE * expected:
        raise CheckpointError(
            f"{skill.path}: the delta of {name!r} has norm {norm:.6g}, expected {expected:.6g} from skill.json; "
            "the skill is damaged: extract or download it again"
        )


def _base(layout: Layout, skills: Sequence[Skill | None]) -> dict[str, str | None]:
    """Return the base to record: the target's own, else a skill's where the weights showed it, else unknown."""
    stated = base_of(layout.path)
    if stated is not None:
        return stated
    for skill in skills:
        if skill is not None and skill.manifest.base_is_known and match_base(layout, skill).same:
            return {"id": skill.manifest.base.id, "fingerprint": skill.manifest.base.fingerprint}
    return {"id": None, "fingerprint": None}
