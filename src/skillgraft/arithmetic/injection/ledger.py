"""Ledger of injections: which skills a grafted checkpoint holds at which scales, over which original, how exactly.

`made_by` in `skillgraft.json` is the last injection; its `balance`, the ledger, is the sum of all of them, so that
skills can be taken out one by one, or in parts, and taking out the last still leads back to the original.

`weights` is what notices any later change of a weight file, a new save of the same numbers too. It costs one reading
of the files just written, out of the page cache where they fit, at the speed of BLAKE3; to compare it costs nothing,
as an injection fingerprints its target anyway.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillgraft.arithmetic.plan import Plan
from skillgraft.arithmetic.plan_types import TensorPlan
from skillgraft.arithmetic.stream import Sums
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.checkpoint.provenance import PROVENANCE_FILE, read_provenance, write_provenance
from skillgraft.support.atomic import atomic_write_json

_SAME = 1e-12
"""Two products of scales count as equal up to this share: 0.1 · 3 and 0.3."""

_FP64_SLACK = 1 + 2.0**-20
"""Upper bound on the rounding, in fp64 itself, of a loss that was measured in it."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Stored(BaseModel):
    """Read from a file, strictly: values of another type are refused, not converted."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class LedgerEntry(_Stored):
    """One skill and its scale."""

    name: str
    fingerprint: str
    scale: Finite


class Injected(_Stored):
    """Skills with their scales, the method that makes one vector of them, and λ over all; `scales`: by pattern too."""

    skills: tuple[LedgerEntry, ...]
    method: str
    parameters: dict[str, Any]
    scale: Finite
    scales: tuple[tuple[str, Finite], ...] | None = None

    def at(self, scale: float) -> Injected:
        """Return the same with another λ."""
        return self.model_copy(update={"scale": scale})

    @property
    def is_sum(self) -> bool:
        """Whether it is a sum of skills, each at one scale in all tensors."""
        return self.method == "task_arithmetic" and self.scales is None

    @property
    def amounts(self) -> dict[str, float]:
        """The scale of each skill, λ included, by fingerprint."""
        amounts: Counter[str] = Counter()
        for entry in self.skills:
            amounts[entry.fingerprint] += entry.scale * self.scale  # type: ignore[assignment]
        return dict(amounts)

    @property
    def by_name(self) -> dict[str, float]:
        """The scale of each skill, λ included, by name."""
        return {entry.name: entry.scale * self.scale for entry in self.skills}

    @property
    def is_nothing(self) -> bool:
        """Whether every scale is 0."""
        return not any(entry.scale * self.scale for entry in self.skills)


class Ledger(_Stored):
    """The sum of `steps` injections into `original` (a fingerprint).

    `rounding` ≥ ‖weights − (original + held)‖ over all tensors: the sum of what each step lost, measured as it was
    written; None where that is not known. `weights` is the fingerprint of the checkpoint as it was written.
    """

    original: str
    held: Injected
    steps: Annotated[int, Field(ge=1)]
    rounding: Annotated[Finite, Field(ge=0)] | None
    weights: str


class Record(NamedTuple):
    """The record of a provenance: the last injection, its target and output dtype, and the ledger of all."""

    last: Injected
    target: str
    dtype: str | None
    ledger: Ledger


def read_record(directory: Path) -> tuple[Record | None, tuple[str, ...]]:
    """Return the record in a checkpoint's provenance, if there is one, and a remark where it is malformed."""
    provenance = read_provenance(directory)
    made_by = (provenance or {}).get("made_by")
    if provenance is None or not isinstance(made_by, dict) or made_by.get("stage") != "inject":
        return None, ()
    try:
        text = json.dumps(made_by, allow_nan=False)
        ledger = Ledger.model_validate_json(json.dumps(made_by.get("balance"), allow_nan=False))
        last, target, dtype = Injected.model_validate_json(text), provenance["inputs"]["target"], made_by["dtype"]
        if not isinstance(target, str) or not isinstance(dtype, str | None):
            raise TypeError("inputs.target or dtype is no text")
        return Record(last, target, dtype, ledger), ()
    except ValidationError as error:
        first = error.errors()[0]
        why = f"{'.'.join(map(str, first['loc'])) or 'balance'}: {first['msg']}"
    except (KeyError, TypeError, ValueError) as error:
        why = str(error)
    return None, (
        f"{directory / PROVENANCE_FILE} does not say in a usable form what was injected before ({why}): it is not "
        "counted; to take that out again, name the original (--original DIR)",
    )


def added(held: Injected, requested: Injected) -> Injected | None:
    """Return the sum of both, None where they don't add up.

    Task arithmetic adds up skill by skill; another method, or one with λ by pattern, only with itself as a whole, λ
    with λ; an overflow never.
    """
    if held.method != requested.method or held.scales != requested.scales:
        return None
    if not held.is_sum:
        same = [(s.fingerprint, s.scale) for s in held.skills] == [(s.fingerprint, s.scale) for s in requested.skills]
        whole = held.at(_sum(held.scale, requested.scale))
        return whole if same and held.parameters == requested.parameters and math.isfinite(whole.scale) else None
    before, change = held.amounts, requested.amounts
    names = {entry.fingerprint: entry.name for entry in (*requested.skills, *held.skills)}
    entries = tuple(
        LedgerEntry(name=names[key], fingerprint=key, scale=_sum(before.get(key, 0.0), change.get(key, 0.0)))
        for key in {**before, **change}
    )
    finite = all(math.isfinite(entry.scale) for entry in entries)
    return held.model_copy(update={"skills": entries, "scale": 1.0}) if finite else None


def takes_out(held: Injected, requested: Injected) -> bool:
    """Return whether `requested` names nothing but what is held, and lessens some of it."""
    if added(held, requested) is None:
        return False
    before, change = held.amounts, requested.amounts
    lessens = any(before[key] * change[key] < 0 for key in change if key in before)
    return change.keys() <= before.keys() and lessens


def undoes(last: Injected, requested: Injected) -> bool:
    """Return whether `requested` takes out all of `last`, and nothing else."""
    rest = added(last, requested)
    return rest is not None and rest.is_nothing and takes_out(last, requested)


def recognised(requested: Injected, known: Record, same: Mapping[str, str]) -> Injected:
    """Return `requested` with the recorded skills' fingerprints where it has others that are the `same` skills."""
    recorded = known.last.amounts.keys() | known.ledger.held.amounts.keys()
    entries = tuple(
        entry.model_copy(update={"fingerprint": same[entry.fingerprint]})
        if entry.fingerprint not in recorded and same.get(entry.fingerprint) in recorded
        else entry
        for entry in requested.skills
    )
    return requested.model_copy(update={"skills": entries})


def _sum(amount: float, change: float) -> float:
    return 0.0 if abs(amount + change) <= _SAME * abs(amount) else amount + change


def _pruned(held: Injected) -> Injected:
    """Return the same without what is at 0; a method's skills belong together."""
    whole = not held.is_sum and not held.is_nothing
    return held if whole else held.model_copy(update={"skills": tuple(s for s in held.skills if s.scale * held.scale)})


def write_ledger(
    directory: Path,
    plan: Plan,
    known: Record | None,
    requested: Injected,
    believed: bool,
    losses: Sums,
    made_by: Mapping[str, Any],
    base: Mapping[str, str | None],
) -> None:
    """Write the provenance of a checkpoint that an injection of `requested` made in `directory`, with the ledger in it.

    `known` is the target's record; where it is not `believed`, the distance from the original is no longer known.
    """
    weights = fingerprint_checkpoint(directory)
    loss = _loss(plan, requested.scale, losses)
    held = added(known.ledger.held, requested) if known is not None else None
    if known is None or held is None:
        nothing = requested.model_copy(update={"skills": ()})
        held = added(nothing, requested) or requested
        ledger = Ledger(original=plan.inputs["target"], held=_pruned(held), steps=1, rounding=loss, weights=weights)
    else:
        before = known.ledger.rounding if believed else None
        rounding = _finite(before + loss) if before is not None and loss is not None else None
        changes = {"held": _pruned(held), "steps": known.ledger.steps + 1, "rounding": rounding, "weights": weights}
        ledger = known.ledger.model_copy(update=changes)
    without = {"held": {"scales"}} if ledger.held.scales is None else None
    with_ledger = {**made_by, "balance": ledger.model_dump(mode="json", exclude=without)}
    write_provenance(directory, kind="inject", base=base, made_by=with_ledger, inputs=plan.inputs)


def write_own_provenance(directory: Path, original: Path, fingerprint: str, cast: bool) -> None:
    """Write the original's own provenance, if it has one, beside its weights in `directory`; `cast`: in another dtype.

    Its ledger, where it describes the original, describes the copy too.
    """
    source = original / PROVENANCE_FILE
    record, _ = read_record(original)
    provenance = read_provenance(original)
    if provenance is None:
        return
    if record is None or cast or record.ledger.weights != fingerprint:
        shutil.copyfile(source, directory / PROVENANCE_FILE)
        return
    provenance["made_by"]["balance"]["weights"] = fingerprint_checkpoint(directory)
    atomic_write_json(directory / PROVENANCE_FILE, provenance)


def _loss(plan: Plan, scale: float, losses: Sums) -> float | None:
    """Return ‖stored − exact‖ over all tensors, None if part of it was not measured."""
    if not all(_measured(tensor, scale) for tensor in plan.tensors):
        return None
    return _finite(math.fsum(squared for squared, _ in losses.values()) ** 0.5 * _FP64_SLACK)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _measured(tensor: TensorPlan, scale: float) -> bool:
    """Whether a tensor was copied, widened, or changed in all of its elements; in fp64 no rounding can be seen."""
    stored, target = tensor.spec.dtype, tensor.target.dtype
    if scale and tensor.operands and stored == "F64":
        return False
    changed = scale != 0 and tensor.breaks == (tensor.target.elements,)
    return changed or stored == target or DTYPE_BYTES[stored] > DTYPE_BYTES[target]
