"""Un-injection: what was injected, taken out again; exact where the original is at hand, else within two roundings.

A grafted checkpoint's provenance names the skills by fingerprint with their scales, and the original by fingerprint
alone: where it lies is noted in this machine's cache (`checkpoint.places`), so that no path is published with a model.
Nothing of this is believed: the original is used only after original + skills has given the grafted checkpoint again,
bit for bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skillgraft.arithmetic.in_memory import UndoneBounds, make_tensors
from skillgraft.arithmetic.leaves import Stored
from skillgraft.arithmetic.merge_recipe import MergeRecipe
from skillgraft.arithmetic.plan import OUTPUT_DTYPES, Plan, plan_merge, versions_of
from skillgraft.arithmetic.scratch import Files
from skillgraft.arithmetic.stream import Machine
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.layout import Layout, read_layout
from skillgraft.checkpoint.places import noted_place
from skillgraft.checkpoint.provenance import read_provenance
from skillgraft.checkpoint.tensor_io import TORCH_NAMES
from skillgraft.checkpoint.tokenizer import TOKENIZER_FILE
from skillgraft.checkpoint.weights import planned_dtypes
from skillgraft.errors import CompatibilityError, RecipeError, SkillgraftError

_SAME = 1e-12
"""Two products of scales count as equal up to this share: 0.1 · 3 and 0.3."""

_OWN_FILES = ("generation_config.json", TOKENIZER_FILE, "tokenizer_config.json", "chat_template.jinja")


class Injected(NamedTuple):
    """What one injection did: skills as (fingerprint, name, scale), the method, and λ over all."""

    skills: tuple[tuple[str, str, float], ...]
    method: str
    parameters: Mapping[str, Any]
    scale: float


@dataclass(frozen=True)
class Removal:
    """What taking out means here: `left` of each recorded skill by name, `original` where its bytes are the result.

    `on_grid`: nothing is left, and the injection kept the original's dtypes, so that its numbers are of those.
    `bounded`: nothing shows that the target changed since the injection, which would leave nothing to be said.
    """

    left: dict[str, float]
    original: Layout | None
    original_fingerprint: str | None
    remarks: tuple[str, ...]
    on_grid: bool = False
    bounded: bool = True


class Record(NamedTuple):
    """A provenance's word: what was injected, into which checkpoint (its fingerprint), and the dtype asked for."""

    injected: Injected
    target: str
    dtype: str | None


def recorded_injection(directory: Path) -> Record | None:
    """Return what a checkpoint's provenance says was injected last; None if nothing."""
    provenance = read_provenance(directory)
    made = (provenance or {}).get("made_by")
    if provenance is None or not isinstance(made, dict) or made.get("stage") != "inject":
        return None
    try:
        skills = tuple((str(s["fingerprint"]), str(s["name"]), float(s["scale"])) for s in made["skills"])
        injected = Injected(skills, str(made["method"]), dict(made["parameters"]), float(made["scale"]))
        return Record(injected, str(provenance["inputs"]["target"]), made["dtype"])
    except (KeyError, TypeError, ValueError):
        return None  # of an older version, or changed by hand: then nothing is known


def what_is_left(recorded: Injected, asked: Injected) -> dict[str, float] | None:
    """Return what remains of each recorded skill, by name; None where `asked` takes nothing of it out.

    Task arithmetic adds up skill by skill; the other methods can only be undone as a whole, λ against λ.
    """
    if recorded.method != asked.method:
        return None
    if recorded.method != "task_arithmetic":
        same = [(f, scale) for f, _, scale in recorded.skills] == [(f, scale) for f, _, scale in asked.skills]
        if not same or recorded.parameters != asked.parameters or recorded.scale * asked.scale >= 0:
            return None
        left = _rest(recorded.scale, asked.scale)
        return {name: scale * left for _, name, scale in recorded.skills}
    before, change = _amounts(recorded), _amounts(asked)
    if not change.keys() <= before.keys() or not any(before[key] * change[key] < 0 for key in change):
        return None
    names = {fingerprint: name for fingerprint, name, _ in recorded.skills}
    return {names[key]: _rest(amount, change.get(key, 0.0)) for key, amount in before.items()}


def _amounts(injected: Injected) -> dict[str, float]:
    amounts: Counter[str] = Counter()
    for fingerprint, _, scale in injected.skills:
        amounts[fingerprint] += scale * injected.scale  # type: ignore[assignment]
    return dict(amounts)


def _rest(amount: float, change: float) -> float:
    return 0.0 if abs(amount + change) <= _SAME * abs(amount) else amount + change


def plan_removal(
    recipe: MergeRecipe, plan: Plan, asked: Injected, original: Path | None, machine: Machine
) -> Removal | None:
    """Return what an injection with `asked` takes out of the plan's target, None where it takes out nothing known.

    With `original` (a directory) the result is that checkpoint, or an error says why it cannot be. Without, the place
    that was noted when the skills were injected is tried; a checkpoint there that is another one by now is left alone,
    and a remark says so.

    Raises `RecipeError` for an `original` where something would be left, and `CompatibilityError` for one that does
    not give the target again.
    """
    known = recorded_injection(plan.target.path)
    left = what_is_left(known.injected, asked) if known is not None else None
    if original is not None:
        if known is not None and (left is None or any(left.values())):
            raise RecipeError(
                f"original: {plan.target.path} is not undone by this: {_said(known.injected)} was injected, "
                f"{_said(asked)} is asked for; expected the same skills with the opposite scales, or no original"
            )
        layout = read_layout(original)
        forward = known.injected if known is not None else asked._replace(scale=-asked.scale)
        if not _reproduces(layout, recipe, plan, asked, forward, machine):
            raise CompatibilityError(
                f"{original} with {_said(asked, -1.0)} injected is not {plan.target.path}, bit for bit; expected the "
                "checkpoint that the skills were injected into: give that one, or leave original out"
            )
        return Removal(left or {}, layout, fingerprint_checkpoint(original), _differences(layout, plan.target))
    if known is None or left is None:
        return None
    if any(left.values()):
        rest = ", ".join(f"{name} at {scale:g}" for name, scale in left.items() if scale)
        return Removal(left, None, None, (f"of what was injected there remains: {rest}",))
    return _from_noted_place(recipe, plan, asked, known, machine)


def _from_noted_place(recipe: MergeRecipe, plan: Plan, asked: Injected, known: Record, machine: Machine) -> Removal:
    left = {name: 0.0 for _, name, _ in known.injected.skills}
    near = Removal(left, None, None, (), on_grid=known.dtype is None)
    path = noted_place(known.target)
    if path is None:
        hint = "the original's place is not known here; naming it (--original DIR) makes the result exact"
        return replace(near, remarks=(hint,))
    try:
        found = fingerprint_checkpoint(path)
        if found != known.target:
            said = f"{path}, once the original, is another checkpoint by now ({found}, not {known.target}): not used"
            return replace(near, remarks=(said,))
        layout = read_layout(path)
        if not _reproduces(layout, recipe, plan, asked, known.injected, machine):
            said = f"{path}, the original, no longer gives {plan.target.path} with the skills: that changed; not used"
            return replace(near, remarks=(said,), bounded=False)
    except SkillgraftError as error:
        return replace(near, remarks=(f"the original cannot be used: {error}",))
    return replace(near, original=layout, original_fingerprint=found, remarks=_differences(layout, plan.target))


def _said(injected: Injected, factor: float = 1.0) -> str:
    return " + ".join(f"{name} at {scale * injected.scale * factor:g}" for _, name, scale in injected.skills)


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
            self.equal = bool(np.array_equal(stored, np.asarray(data)))


def _reproduces(
    original: Layout, recipe: MergeRecipe, plan: Plan, asked: Injected, injected: Injected, machine: Machine
) -> bool:
    """Return whether injecting `injected` into `original` gives every tensor of the plan's target, bit for bit.

    `recipe` and `asked` tell where the skills lie; every one of `injected` is among them.
    """
    grafted = plan.target.tensors
    if {n: info.shape for n, info in original.tensors.items()} != {n: info.shape for n, info in grafted.items()}:
        return False
    spec = {fingerprint: o for (fingerprint, _, _), o in zip(asked.skills, recipe.operands, strict=True)}
    operands = [spec[fingerprint].model_copy(update={"weight": scale}) for fingerprint, _, scale in injected.skills]
    forward = plan_merge(recipe.model_copy(update={"base": original.path, "operands": operands, "dtype": None}))
    tensors = [replace(t, spec=t.spec._replace(dtype=grafted[t.spec.name].dtype)) for t in forward.tensors]
    with Files() as files:
        comparison = _Comparison(plan.target, files)
        make_tensors(replace(forward, tensors=tuple(tensors)), tensors, comparison, machine, injected.scale)
    return comparison.equal


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
    inputs = {**plan.inputs, "original": removal.original_fingerprint}
    return replace(plan, target=original, tensors=tensors, inputs=inputs, versions=versions_of(tensors))


def removal_report(plan: Plan, removal: Removal, scale: float, out: Path, machine: Machine) -> dict[str, Any]:
    """Return what is known of the distance between the result and what was there before the injection.

    `left`: what remains of each skill. `exact` with `original`, or `bound` ≥ ‖result − (original + what is left)‖ over
    all changed tensors, `relative` to the grafted tensors' norm, `elements`, how many of the result's numbers may
    differ at all, and the three by tensor (see `in_memory.UndoneBounds`). They hold where the grafted checkpoint is
    what the injection wrote; where it is found not to be, `bound` is None.
    """
    if removal.original is not None:
        return {"exact": True, "original": str(removal.original.path), "left": removal.left}
    if not removal.bounded:
        return {"exact": False, "original": None, "left": removal.left, "bound": None}
    wide = tuple(replace(t, spec=t.spec._replace(dtype="F64")) for t in plan.tensors if t.operands)
    with Files() as files:
        sink = UndoneBounds(plan.target, read_layout(out), removal.on_grid, files)
        make_tensors(replace(plan, tensors=wide), wide, sink, machine, scale)
    found = sink.bounds()
    rows = {
        name: {"bound": b.bound, "relative": b.bound / b.norm if b.norm else 0.0, "elements": b.elements}
        for name, b in found.items()
    }
    bound = math.fsum(b.bound**2 for b in found.values()) ** 0.5
    norm = math.fsum(b.norm**2 for b in found.values()) ** 0.5
    dtypes = [code for t in plan.tensors if t.operands for code in (t.target.dtype, t.spec.dtype)]
    return {
        "exact": False,
        "original": None,
        "left": removal.left,
        "rounding": _rounding([TORCH_NAMES[code] for code in dtypes]),
        "bound": bound,
        "relative": bound / norm if norm else 0.0,
        "elements": sum(b.elements for b in found.values()),
        "tensors": rows,
    }


def _rounding(dtypes: Sequence[str]) -> str:
    found = list(dict.fromkeys(dtypes))
    return f"{found[0]} rounding twice" if len(found) == 1 else f"{' and '.join(found)} rounding"
