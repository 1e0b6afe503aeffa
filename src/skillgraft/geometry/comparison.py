"""Compare vectors of parameters: a plan, one stream over all vectors, spectra on request; the measures as JSON data."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from skillgraft.arithmetic.tiles import default_threads
from skillgraft.errors import CompatibilityError, RecipeError
from skillgraft.geometry import nulls
from skillgraft.geometry.modules import KINDS, kind_of, layer_groups, layer_of
from skillgraft.geometry.operands import VectorSpec, parse_operands
from skillgraft.geometry.pair_wording import say_pair
from skillgraft.geometry.plan import ComparePlan, plan_comparison
from skillgraft.geometry.spectra import ENERGY_RANKS, Spectra, spectra
from skillgraft.geometry.sums import Sums, add, exact_sum, sum_tensors
from skillgraft.support.progress import Progress

METHOD = {
    "exact": "dot products, norms, cosines, counts and the variances of the nulls: fp64 sums over every element",
    "spectra": (
        "all singular values from Gram matrices in fp64; those below about 1e-6 of the largest count as 0; no sampling"
    ),
    "nulls": "exact variances of random vectors (see skillgraft.geometry.nulls), no simulation; z is over the widest",
}

PairMeasures = Mapping[str, Any]


def compare(
    operands: Sequence[str | VectorSpec],
    base: str | os.PathLike[str] | None = None,
    *,
    with_spectra: bool = False,
    rank: int = 8,
    allow: Collection[str] = (),
    threads: int | None = None,
    progress: Callable[[str], Progress | None] | None = None,
) -> dict[str, Any]:
    """Compare vectors of parameters: norms, cosines, signs, zeros and spectra, beside chance.

    `operands` are texts: `DIR`, `NAME=DIR`, `GROUP/NAME=DIR`, where DIR is a checkpoint (less `base`), a skill (or
    its name), a PEFT LoRA adapter, or `DIR:DIR` for the difference of two checkpoints; or they are operands already
    read from such texts. `rank` is that of the leading subspaces. `progress` gives the callback for the phase that it
    is called with. The result holds only JSON data: `vectors`, `pairs`, `groups` (pairs by their groups), `kinds`,
    `layers`, `cells` (layer × kind) and `tensors`.

    Raises as `plan_comparison` and `sum_tensors` do, and `CompatibilityError` for a vector that is zero.
    """
    started = time.perf_counter()
    if rank < 1:
        raise RecipeError(f"rank is {rank}; expected at least 1, the dimensions of the leading subspaces")
    plan = plan_comparison(parse_operands(operands), None if base is None else Path(base).expanduser(), allow)
    start = progress or (lambda phase: None)
    sums = sum_tensors(plan, threads or default_threads(), start("comparing"))
    _refuse_zero(plan, sums)
    by_matrix = spectra(plan, rank, start("spectra")) if with_spectra else {}
    sums |= {name: replace(sums[name], rotation=one.rotation) for name, one in by_matrix.items()}
    measures = _measures(plan, sums, by_matrix)
    measures["settings"] = {"spectra": with_spectra, "rank": rank if with_spectra else None, "allow": list(allow)}
    measures["bytes_read"] = plan.bytes_read
    measures["seconds"] = time.perf_counter() - started
    return measures


def _refuse_zero(plan: ComparePlan, sums: Mapping[str, Sums]) -> None:
    for number, vector in enumerate(plan.vectors):
        if not any(one.dot[number, number] > 0 for one in sums.values()):
            minus = vector.minus or (plan.base if vector.kind == "checkpoint" else None)
            what = f"{vector.path} equals {minus} in every tensor" if minus else f"all of {vector.path} is zero"
            raise CompatibilityError(
                f"operand {vector.label!r}: {what}; a zero vector has no direction: leave it out, or name the "
                "checkpoint that was trained"
            )


def _measures(plan: ComparePlan, sums: Mapping[str, Sums], by_matrix: Mapping[str, Spectra]) -> dict[str, Any]:
    names = list(sums)
    places = {name: (layer_of(name), kind_of(name)) for name in names}
    layers = 1 + max((layer for layer, _ in places.values() if layer is not None), default=-1)

    def part(chosen: Sequence[str]) -> dict[str, Any]:
        matrices = [by_matrix[name] for name in chosen if name in by_matrix]
        return _part(plan, [sums[name] for name in chosen], matrices, bool(by_matrix))

    whole = part(names)
    kinds = {kind: [name for name in names if places[name][1] == kind] for kind in KINDS}
    groups = {
        (f"layer {first}" if first == last else f"layers {first}–{last}"): [
            name for name in names if (layer := places[name][0]) is not None and first <= layer <= last
        ]
        for first, last in layer_groups(layers)
    }
    cells: dict[tuple[int, str], list[str]] = {}
    for name, (layer, kind) in places.items():
        if layer is not None:
            cells.setdefault((layer, kind), []).append(name)
    vectors = [
        {"label": vector.label, "group": vector.group, "kind": vector.kind, "path": str(vector.path)}
        | ({"minus": str(vector.minus)} if vector.minus else {})
        | measured
        for vector, measured in zip(plan.vectors, whole["vectors"], strict=True)
    ]
    pairs = [
        {"one": plan.vectors[i].label, "other": plan.vectors[j].label, "groups": _groups(plan, i, j)}
        | measured
        | {"sentence": say_pair(measured)}
        for (i, j), measured in zip(_pairs(plan), whole["pairs"], strict=True)
    ]
    return {
        "base": None if plan.base is None else str(plan.base),
        "elements": whole["elements"],
        "vectors": vectors,
        "pairs": pairs,
        "groups": _by_groups(pairs),
        "kinds": {kind: part(members) for kind, members in kinds.items() if members},
        "layers": {title: part(members) for title, members in groups.items() if members},
        "cells": [
            {"layer": layer, "kind": kind, **part(members)}
            for (layer, kind), members in sorted(cells.items(), key=lambda item: (item[0][0], KINDS.index(item[0][1])))
        ],
        "tensors": {tensor.name: {"shape": list(tensor.shape), **part([tensor.name])} for tensor in plan.tensors},
        "method": METHOD,
        "remarks": list(plan.remarks),
    }


def _pairs(plan: ComparePlan) -> list[tuple[int, int]]:
    return list(combinations(range(len(plan.vectors)), 2))


def _groups(plan: ComparePlan, i: int, j: int) -> str:
    """Return the pair's groups in the order in which the operands name groups first."""
    order = list(dict.fromkeys(vector.group for vector in plan.vectors))
    return " – ".join(sorted((plan.vectors[i].group, plan.vectors[j].group), key=order.index))


def _part(plan: ComparePlan, sums: Sequence[Sums], matrices: Sequence[Spectra], with_rotation: bool) -> dict[str, Any]:
    """Return the measures of some tensors together: vectors in the operands' order, pairs in `combinations`' order."""
    total = add(sums)
    squared_z, counts = _mean_squared_z(sums)
    return {
        "elements": int(total.elements),
        "vectors": [
            _vector(total, i, plan.base is not None) | _mean_spectrum([m.vectors[i] for m in matrices])
            for i in range(len(plan.vectors))
        ],
        "pairs": [
            _pair(total, i, j, with_rotation)
            | _rms_z(float(squared_z[i, j]), int(counts[i, j]))
            | _mean_subspaces([m.pairs[i, j] for m in matrices if (i, j) in m.pairs])
            for i, j in _pairs(plan)
        ],
    }


def _vector(total: Sums, i: int, with_base: bool) -> dict[str, Any]:
    norm = math.sqrt(total.dot[i, i])
    measured: dict[str, Any] = {"norm": norm, "zeros": (total.elements - float(total.same[i, i])) / total.elements}
    if with_base:
        measured["relative_norm"] = norm / math.sqrt(total.base) if total.base > 0 else None
        measured["below_bf16"] = float(total.below[i]) / total.elements
    return measured


def _pair(total: Sums, i: int, j: int, with_rotation: bool) -> dict[str, Any]:
    square, other = float(total.dot[i, i]), float(total.dot[j, j])
    variances = {nulls.ISOTROPIC: float(total.isotropic[i, j]), nulls.SIGN_FLIPS: float(total.fourth[i, j])}
    if with_rotation:
        variances[nulls.ROTATION] = float(total.rotation[i, j])
    sds = {name: nulls.cosine_sd(variance, square, other) for name, variance in variances.items()}
    cosine = float(total.dot[i, j]) / math.sqrt(square) / math.sqrt(other) if square > 0 and other > 0 else None
    widest = max((sd for sd in sds.values() if sd is not None), default=0.0)
    both = float(total.same[i, j] + total.opposite[i, j])
    either = float(total.same[i, i] + total.same[j, j]) - both
    return {
        "cosine": cosine,
        "chance_sd": sds,
        "z": cosine / widest if cosine is not None and widest > 0 else None,
        "same_sign": float(total.same[i, j]) / both if both else None,
        "same_sign_of_all": float(total.same[i, j]) / total.elements,
        "overlap": both / either if either else None,
    }


def _mean_squared_z(sums: Sequence[Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over tensors of (a·b)² over its widest variance by chance, and the number of tensors.

    The mean is 1 by chance, or less. It sees what the cosine of all tensors together hides: angles that lie on either
    side of 90° and cancel.
    """
    dot = np.stack([one.dot for one in sums])
    variance = np.stack([np.maximum(np.maximum(one.isotropic, one.fourth), one.rotation) for one in sums])
    known = variance > 0
    squares = np.divide(dot**2, variance, out=np.zeros_like(dot), where=known)
    counts = known.sum(axis=0)
    return exact_sum(squares) / np.maximum(counts, 1), counts


def _rms_z(mean_square: float, tensors: int) -> dict[str, Any]:
    """Return the root mean square of z over tensors, and what chance hardly exceeds: four standard deviations of z².

    A sum of products of random signs of rows and columns has E z⁴ <= 9 (Khinchin's inequality for the one, then for
    the other), so that the variance of z² is at most 8, and that of its mean over independent tensors 8 over their
    number.
    """
    if not tensors:
        return {"rms_z": None, "rms_z_limit": None}
    return {"rms_z": math.sqrt(mean_square), "rms_z_limit": math.sqrt(1.0 + 4.0 * math.sqrt(8.0 / tensors))}


def _mean_spectrum(measured: Sequence[dict[str, Any] | None]) -> dict[str, Any]:
    """Return the means over those matrices that the vector changes; nothing where there are none."""
    known = [one for one in measured if one is not None]
    if not known:
        return {}
    energies = {
        str(rank): _mean([one["energy"][str(rank)] for one in known if str(rank) in one["energy"]])
        for rank in ENERGY_RANKS
        if any(str(rank) in one["energy"] for one in known)
    }
    means = {name: _mean([one[name] for one in known]) for name in ("effective_rank", "stable_rank", "rank")}
    return {"spectrum": {"matrices": len(known), **means, "energy": energies}}


def _mean_subspaces(measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean overlaps over matrices beside those of random subspaces, and z of their difference."""
    if not measured:
        return {}
    sides: dict[str, Any] = {}
    for side in ("left", "right"):
        parts = [one[side] for one in measured]
        overlap, expected = _mean([one["overlap"] for one in parts]), _mean([one["expected"] for one in parts])
        sd = math.sqrt(math.fsum(one["sd"] ** 2 for one in parts)) / len(parts)
        z = (overlap - expected) / sd if sd > 0 else None
        sides[side] = {"overlap": overlap, "expected": expected, "sd": sd, "z": z}
        if len(parts) == 1:
            sides[side]["degrees"] = parts[0]["degrees"]
    return {"subspaces": {"matrices": len(measured), **sides}}


def _by_groups(pairs: Sequence[PairMeasures]) -> list[dict[str, Any]]:
    """Return the pairs of each two groups side by side."""
    titles = dict.fromkeys(pair["groups"] for pair in pairs)
    groups = []
    for title in titles:
        members = [pair for pair in pairs if pair["groups"] == title]
        cosines = [pair["cosine"] for pair in members]
        groups.append(
            {
                "groups": title,
                "pairs": len(members),
                "cosine": {"mean": _mean(cosines), "least": min(cosines), "most": max(cosines)},
                "chance_sd": max(sd for pair in members for sd in pair["chance_sd"].values()),
                "same_sign": _mean([pair["same_sign"] for pair in members if pair["same_sign"] is not None] or [0.0]),
            }
        )
    return groups


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
