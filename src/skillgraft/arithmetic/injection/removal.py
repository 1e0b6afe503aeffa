"""Remove an injected skill: exactly where the original is at hand, else within the roundings.

A grafted checkpoint's provenance names the skills by fingerprint with their scales, and the original by fingerprint
alone (`ledger`): its path is noted in this machine's cache (`support.cache`), so that no path is published
with a model. Nothing of this is believed: the checkpoint from before the last injection is used only after it + skills
has given the grafted checkpoint again, bit for bit; the original below several injections only where original +
skills lies within the recorded roundings of a grafted checkpoint whose weights are the recorded ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skillgraft.arithmetic.buffers import Files
from skillgraft.arithmetic.in_memory import Distance, UndoneBounds, make_tensors
from skillgraft.arithmetic.injection.ledger import Injected, Record, added, read_record, takes_out, undoes
from skillgraft.arithmetic.merge_schema import MergeRecipe
from skillgraft.arithmetic.plan import OUTPUT_DTYPES, Plan, plan_merge, versions_of
from skillgraft.arithmetic.stream import Engine
from skillgraft.arithmetic.tensor_sources import Stored
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.layout import Layout, read_layout
from skillgraft.checkpoint.provenance import read_provenance
from skillgraft.checkpoint.tensor_io import TORCH_NAMES
from skillgraft.checkpoint.tokenizer import TOKENIZER_FILE
from skillgraft.checkpoint.weights import planned_dtypes
from skillgraft.errors import CompatibilityError, RecipeError, SkillgraftError
from skillgraft.support.cache import noted_place

_OWN_FILES = ("generation_config.json", TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja")

_SLACK = 1e-12
"""Tolerance of a distance for fp64 rounding and scales equal but for their last bits, as a share of the norm."""


@dataclass(frozen=True)
class Removal:
    """A removal: `left` of each recorded skill by name, `original` where its bytes are the result.

    `on_grid`: nothing is left, and the injection kept the original's dtypes, so that its numbers are of those.
    `bounded`: it is known that the target is what the recorded injections made. `steps` injections, this one too, come
    between the result and what it is measured against; beyond two, the bound is the sum of what they lost.
    """

    left: dict[str, float]
    original: Layout | None = None
    original_fingerprint: str | None = None
    remarks: tuple[str, ...] = ()
    on_grid: bool = False
    bounded: bool = True
    steps: int = 2


def plan_removal(
    recipe: MergeRecipe,
    plan: Plan,
    known: Record | None,
    requested: Injected,
    doubt: str | None,
    original: Path | None,
    engine: Engine,
) -> Removal | None:
    """Plan the removal of what an injection with `requested` takes out of the plan's target, None if nothing known.

    `known` is the target's record, `doubt` what keeps it from being believed. With `original` (a directory) the result
    is that checkpoint, or an error says why it cannot be. Without, the place that was noted when the skills were
    injected is tried; a checkpoint there that is another one by now is left alone, and a remark says so.

    Raises `RecipeError` for an `original` where something would be left, and `CompatibilityError` for one that does
    not give the target again.
    """
    rest = (
        added(known.ledger.held, requested) if known is not None and takes_out(known.ledger.held, requested) else None
    )
    last = known is not None and rest is not None and undoes(known.last, requested)
    whole = rest is not None and rest.is_nothing

    def gives_target(layout: Layout) -> bool:
        forward = known.last if known is not None else requested.at(-requested.scale)
        return _reproduces(layout, recipe, plan, requested, forward, engine)

    def is_below(layout: Layout) -> bool:
        rounding = known.ledger.rounding if known is not None and doubt is None else None
        return rounding is not None and _lies_within(rounding, layout, recipe, plan, requested, engine)

    left = rest.by_name if rest is not None else {}
    if original is not None:
        if known is not None and not (last or whole):
            raise RecipeError(
                f"original: {plan.target.path} is not undone by this: {_listing(known.last)} was injected, "
                f"{_listing(requested)} is asked for; expected the same skills with the opposite scales, or no original"
            )
        layout = read_layout(original)
        if not ((last or known is None) and gives_target(layout)) and not (whole and is_below(layout)):
            raise CompatibilityError(
                f"{original} with {_listing(requested, -1.0)} injected is not {plan.target.path}, bit for bit; "
                "expected the checkpoint that the skills were injected into: give that one, or leave original out"
            )
        return Removal(left, layout, fingerprint_checkpoint(original), _differences(layout, plan.target))
    if known is None or rest is None:
        return None
    steps = 2 if last else known.ledger.steps + 1
    if steps > 2 and known.ledger.rounding is None:
        doubt = doubt or f"what the injections into {plan.target.path} lost is not known"
    doubts = (f"{doubt}: how far the result is from the original is not known",) if doubt else ()
    near = Removal(left, remarks=doubts, on_grid=last and known.dtype is None, bounded=doubt is None, steps=steps)
    if last:
        near = _from_noted_place(near, known.target, gives_target, plan)
    if whole and near.original is None and not (last and known.ledger.original == known.target):
        near = _from_noted_place(near, known.ledger.original, is_below, plan)
    if last or whole:
        return near
    remaining = ", ".join(f"{entry.name} at {entry.scale * rest.scale:g}" for entry in rest.skills if entry.scale)
    return replace(near, remarks=(*doubts, f"of what was injected there remains: {remaining}"))


def _from_noted_place(near: Removal, original: str, proves: Callable[[Layout], bool], plan: Plan) -> Removal:
    """Return `near` with the checkpoint noted under the fingerprint `original`, or a remark on why it is not used."""
    path = noted_place(original)
    if path is None:
        hint = "the original's place is not known here; naming it (--original DIR) makes the result exact"
        return replace(near, remarks=(*near.remarks, hint))
    try:
        fingerprint = fingerprint_checkpoint(path)
        if fingerprint != original:
            remark = (
                f"{path}, once the original, is another checkpoint by now ({fingerprint}, not {original}): not used"
            )
            return replace(near, remarks=(*near.remarks, remark))
        layout = read_layout(path)
        if not proves(layout):
            remark = f"{path}, the original, no longer gives {plan.target.path} with the skills: that changed; not used"
            return replace(near, remarks=(*near.remarks, remark), bounded=False)
    except SkillgraftError as error:
        return replace(near, remarks=(*near.remarks, f"the original cannot be used: {error}"))
    return replace(near, original=layout, original_fingerprint=fingerprint, remarks=_differences(layout, plan.target))


def _listing(injected: Injected, factor: float = 1.0) -> str:
    return " + ".join(f"{entry.name} at {entry.scale * injected.scale * factor:g}" for entry in injected.skills)


def _differences(original: Layout, target: Layout) -> tuple[str, ...]:
    """Return the remark on small files that were changed since the injection."""
    files = [name for name in _OWN_FILES if _content(original.path / name) != _content(target.path / name)]
    return (f"{', '.join(files)} of {target.path} differs: the original's is taken",) if files else ()


def _content(file: Path) -> str | None:
    return fingerprint_file(file) if file.is_file() else None


class _Comparison:
    """Takes the bytes that a plan makes and compares them with a checkpoint's."""

    def __init__(self, layout: Layout, files: Files) -> None:
        self._layout, self._files, self.equal = layout, files, True

    def write(self, name: str, begin: int, data: memoryview | np.ndarray) -> None:
        if self.equal:
            stored = np.empty(len(data), dtype=np.uint8)
            self._files.read(self._layout.tensors[name], begin, stored)
            if not np.array_equal(stored, np.asarray(data)):
                self.equal = False  # for good: several threads write, and one that ends later is no proof


def _reproduces(
    original: Layout, recipe: MergeRecipe, plan: Plan, requested: Injected, injected: Injected, engine: Engine
) -> bool:
    """Return whether injecting `injected` into `original` gives every tensor of the plan's target, bit for bit.

    `recipe` and `requested` tell where the skills lie; every one of `injected` is among them.
    """
    grafted = plan.target.tensors
    if {n: info.shape for n, info in original.tensors.items()} != {n: info.shape for n, info in grafted.items()}:
        return False
    spec = {entry.fingerprint: o for entry, o in zip(requested.skills, recipe.operands, strict=True)}
    operands = [spec[entry.fingerprint].model_copy(update={"weight": entry.scale}) for entry in injected.skills]
    forward = plan_merge(recipe.model_copy(update={"base": original.path, "operands": operands, "dtype": None}))
    tensors = [replace(t, spec=t.spec._replace(dtype=grafted[t.spec.name].dtype)) for t in forward.tensors]
    with Files() as files:
        comparison = _Comparison(plan.target, files)
        make_tensors(replace(forward, tensors=tuple(tensors)), tensors, comparison, engine, injected.scale)
    return comparison.equal


def _lies_within(
    rounding: float, original: Layout, recipe: MergeRecipe, plan: Plan, requested: Injected, engine: Engine
) -> bool:
    """Return whether the plan's target is no farther than `rounding` from `original` less what is `requested`."""
    grafted = plan.target.tensors
    if {n: info.shape for n, info in original.tensors.items()} != {n: info.shape for n, info in grafted.items()}:
        return False
    forward = plan_merge(recipe.model_copy(update={"base": original.path, "dtype": None}))
    exact = tuple(
        replace(t, spec=t.spec._replace(dtype="F64")) if t.target.info.is_float else t for t in forward.tensors
    )
    with Files() as files:
        distance = Distance(plan.target, files)
        make_tensors(replace(forward, tensors=exact), exact, distance, engine, -requested.scale)
    off, norm = distance.total()
    return off <= rounding + _SLACK * norm


def plan_of_original(plan: Plan, removal: Removal) -> Plan:
    """Return the plan whose result is the original checkpoint; `RecipeError` where there is none."""
    original = removal.original
    if original is None or removal.original_fingerprint is None:
        raise RecipeError("there is no original to return to")
    dtypes = planned_dtypes(original, OUTPUT_DTYPES[plan.dtype] if plan.dtype else None)
    by_name = {tensor.spec.name: tensor for tensor in plan.tensors}
    tensors = tuple(
        replace(by_name[name], spec=by_name[name].spec._replace(dtype=dtypes[name]), target=Stored(info), operands=())
        for name, info in original.tensors.items()
    )
    inputs = (read_provenance(original.path) or {}).get("inputs", {})  # it is the original: so says its provenance
    settings = {**plan.settings, "original": removal.original_fingerprint}
    versions = versions_of(tensors)
    return replace(plan, target=original, tensors=tensors, inputs=inputs, settings=settings, versions=versions)


def removal_report(plan: Plan, removal: Removal, scale: float, out: Path, engine: Engine) -> dict[str, Any]:
    """Report on the distance between the result and what was there before the injection.

    `left`: what remains of each skill. `exact` with `original`, or `bound` ≥ ‖result − (original + what is left)‖ over
    all changed tensors, and `relative` to the grafted tensors' norm; after one injection also `elements`, how many of
    the result's numbers may differ at all, and `tensors`, the three by tensor (see `in_memory.UndoneBounds`). After
    several the bound is the sum of their roundings, as the result's ledger has it. `bound` is None where the grafted
    checkpoint is not known to be what the injections wrote.
    """
    if removal.original is not None:
        return {"exact": True, "original": str(removal.original.path), "left": removal.left}
    several = removal.steps > 2
    summed = _summed(out) if several else 0.0
    if not removal.bounded or summed is None:
        return {"exact": False, "original": None, "left": removal.left, "bound": None}
    wide = tuple(replace(t, spec=t.spec._replace(dtype="F64")) for t in plan.tensors if t.operands)
    with Files() as files:
        sink = UndoneBounds(plan.target, read_layout(out), removal.on_grid, files)
        make_tensors(replace(plan, tensors=wide), wide, sink, engine, scale)
    bounds = sink.bounds()
    norm = math.fsum(b.norm**2 for b in bounds.values()) ** 0.5
    dtypes = [TORCH_NAMES[code] for t in plan.tensors if t.operands for code in (t.target.dtype, t.spec.dtype)]
    bound = summed if several else math.fsum(b.bound**2 for b in bounds.values()) ** 0.5
    report = {
        "exact": False,
        "original": None,
        "left": removal.left,
        "rounding": _rounding(dtypes, removal.steps),
        "bound": bound,
        "relative": bound / norm if norm else 0.0,
    }
    if several:
        return report
    rows = {
        name: {"bound": b.bound, "relative": b.bound / b.norm if b.norm else 0.0, "elements": b.elements}
        for name, b in bounds.items()
    }
    return {**report, "elements": sum(b.elements for b in bounds.values()), "tensors": rows}


def _summed(out: Path) -> float | None:
    record, _ = read_record(out)
    return record.ledger.rounding if record is not None else None


def _rounding(dtypes: Sequence[str], steps: int) -> str:
    names = list(dict.fromkeys(dtypes))
    times = "twice" if steps == 2 else f"{steps} times"
    return f"{names[0]} rounding {times}" if len(names) == 1 else f"{' and '.join(names)} rounding"
