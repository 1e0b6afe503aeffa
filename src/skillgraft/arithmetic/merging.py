"""Merge checkpoints by recipe: plan, statistics, stream, and the files beside the weights."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from blake3 import blake3

from skillgraft.arithmetic.cpu_tiles import compute as compute_on_cpu
from skillgraft.arithmetic.merge_recipe import load_merge_recipe, parse_merge_recipe
from skillgraft.arithmetic.merge_schema import MergeRecipe
from skillgraft.arithmetic.plan import Plan, plan_merge
from skillgraft.arithmetic.sidecar_files import copy_sidecar_files, stated_dtype
from skillgraft.arithmetic.stream import Compute, Engine, Output, Sums, gather_statistics, stream
from skillgraft.arithmetic.tiles import TILE_ELEMENTS, default_threads
from skillgraft.checkpoint.provenance import base_of, write_provenance
from skillgraft.checkpoint.writer import resumable_directory
from skillgraft.errors import RecipeError
from skillgraft.support.progress import Progress

ENGINE_VERSION = 1
"""Raised when the same plan would give other bytes: half-finished work of an older version is not resumed."""

Recorder = Callable[[Path, Mapping[str, Any], Sums], None]
"""Writes `skillgraft.json` into an output's directory, from what made it and the losses of its tensors."""


def merge(
    recipe: MergeRecipe | Mapping[str, Any] | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    threads: int | None = None,
    device: str = "cpu",
    durable: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge checkpoints: write the merge that `recipe` (a file, a mapping or a `MergeRecipe`) describes as `out`.

    Config, tokenizer, generation config, chat template and every tensor that no operand changes are the base's. All
    arithmetic is in fp64 with one rounding to the stored dtype; the result depends on neither threads nor shards.
    A killed merge resumes after its finished shards; `durable` synchronises all to the disk before `out` appears.

    Returns a report: `method`, `remarks`, `dtype`, `bytes_read`, `bytes_written`, `seconds`, and for methods on task
    vectors the entries of `survival`.

    Raises `RecipeError`, `MissingPathError`, `CheckpointError`, `CompatibilityError`, `OutputExistsError` and
    `StorageError`, each naming the tensor or file and what to do.
    """
    plan = plan_merge(as_recipe(recipe))
    reports = write(plan, Path(out), {"": 1.0}, "merge", threads, device, durable, progress)
    return reports[0]


def as_recipe(recipe: MergeRecipe | Mapping[str, Any] | str | os.PathLike[str]) -> MergeRecipe:
    """Return a checked recipe from whatever form it has."""
    if isinstance(recipe, MergeRecipe):
        return recipe
    return parse_merge_recipe(dict(recipe)) if isinstance(recipe, Mapping) else load_merge_recipe(Path(recipe))


def write(
    plan: Plan,
    out: Path,
    outputs: Mapping[str, float],
    kind: str,
    threads: int | None = None,
    device: str = "cpu",
    durable: bool = False,
    progress: Progress | None = None,
    check: Callable[[str, float], None] | None = None,
    record: Recorder | None = None,
) -> list[dict[str, Any]]:
    """Execute a plan: write one checkpoint per λ and return their reports in that order.

    `outputs` gives λ by folder under `out`; "" is `out` itself. All appear together or not at all.

    `check` is called with the name of each changed tensor and the Frobenius norm of its change at λ = 1; it may raise.
    `record` writes an output's provenance, by default one that names the target's base.
    """
    engine = engine_for(threads, device)
    began = time.monotonic()
    base = base_of(plan.target.path) or {"id": None, "fingerprint": None}
    metadata = {"skillgraft_inputs": json.dumps(dict(plan.inputs), sort_keys=True)}
    key = work_key(plan, kind, list(outputs.values()))
    needed = plan.bytes_written * len(outputs)
    with resumable_directory(out, key, needed_bytes=needed, durable=durable) as partial:
        checkpoints = []
        for folder, scale in outputs.items():
            (partial / folder).mkdir(exist_ok=True)
            checkpoints.append(Output(partial / folder, scale, metadata))
        changed = any(tensor.operands for tensor in plan.tensors) and any(output.scale for output in checkpoints)
        statistics = gather_statistics(plan, engine) if changed else {}
        sums = stream(plan, statistics, checkpoints, engine, progress)
        dtype, remark = stated_dtype(plan)
        reports = []
        for output, losses in zip(checkpoints, sums, strict=True):
            in_order = {t.spec.name: losses[t.spec.name] for t in plan.tensors if t.spec.name in losses}
            if check is not None and output.scale:
                for name, (_, squared) in in_order.items():
                    check(name, squared**0.5)
            report: dict[str, Any] = {
                "method": plan.method.name,
                "scale": output.scale,
                "dtype": plan.dtype,
                "remarks": [*plan.remarks, *remark],
                "bytes_read": plan.bytes_read,
                "bytes_written": plan.bytes_written,
                "threads": engine.threads,
                "seconds": time.monotonic() - began,
                **(survival(in_order, output.scale) if plan.method.inputs == "vectors" else {}),
                **(plan.method.statistics.report(statistics) if plan.method.statistics is not None else {}),
            }
            copy_sidecar_files(plan.target, output.directory, dtype)
            made_by = {"stage": kind, **plan.settings, "scale": output.scale}
            if "survived_rounding" in report:
                made_by["survived_rounding"] = report["survived_rounding"]
            if record is not None:
                record(output.directory, made_by, in_order)
            else:
                write_provenance(output.directory, kind=kind, base=base, made_by=made_by, inputs=plan.inputs)
            reports.append(report)
    return reports


def engine_for(threads: int | None, device: str) -> Engine:
    """Return the threads and the device's `compute`; `RecipeError` for a number or a device that cannot be."""
    if threads is not None and threads < 1:
        raise RecipeError(f"threads is {threads}, expected a positive number")
    return Engine(threads or default_threads(), compute_on(device))


def work_key(plan: Plan, kind: str, scales: list[float]) -> str:
    """Hash everything that decides the outputs' bytes: the inputs' fingerprints, the settings, the engine."""
    header = [(t.spec, str(t.target.info.file.name), len(t.operands)) for t in plan.tensors]
    text = json.dumps([ENGINE_VERSION, TILE_ELEMENTS, kind, scales, dict(plan.inputs), dict(plan.settings), header])
    return blake3(text.encode()).hexdigest()


def compute_on(device: str) -> Compute:
    """Return the function that computes tiles on `device`; `RecipeError` when there is none. Only a GPU needs torch."""
    if device == "cpu":
        return compute_on_cpu
    if device.partition(":")[0] not in ("cuda", "mps", "xpu", "cpu"):
        raise RecipeError(f"device {device!r} can't compute; expected cpu, or cuda where a GPU is")
    import torch

    from skillgraft.arithmetic.torch_tiles import on_device

    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f"device {device!r} is not there ({error}); expected cpu, or cuda where a GPU is") from error
    return on_device(place)


class TensorSurvival(TypedDict):
    """‖λ·v‖ of one tensor, and the share of it that survived the rounding."""

    norm: float
    survived_rounding: float


class WorstTensor(TypedDict):
    """The tensor of which the smallest share survived."""

    name: str
    survived_rounding: float


class Survival(TypedDict):
    """The rounding part of a report."""

    survived_rounding: float
    worst: WorstTensor | None
    tensors: dict[str, TensorSurvival]


class Estimate(TypedDict):
    """The cost of a merge: tensors in all and those that change, bytes, seconds and peak memory."""

    tensors: int
    changed: int
    bytes_read: int
    bytes_written: int
    seconds: float
    memory_bytes: int


def survival(losses: Sums, scale: float) -> Survival:
    """Return the rounding part of a report from (squared loss, squared norm of the change at λ = 1) per tensor.

    `survived_rounding` = 1 − ‖stored − exact‖ / ‖change‖ over all tensors, `worst` the tensor with the least, and
    `tensors` with `norm` and `survived_rounding` of each.
    """
    losses = {name: (lost, squared * scale * scale) for name, (lost, squared) in losses.items()}
    rows: dict[str, TensorSurvival] = {
        name: {"norm": squared**0.5, "survived_rounding": _survived(lost, squared)}
        for name, (lost, squared) in losses.items()
    }
    lost, squared = (math.fsum(column) for column in zip(*losses.values(), strict=True)) if losses else (0.0, 0.0)
    worst = min(rows, key=lambda name: rows[name]["survived_rounding"], default=None)
    return {
        "survived_rounding": _survived(lost, squared),
        "worst": {"name": worst, "survived_rounding": rows[worst]["survived_rounding"]} if worst else None,
        "tensors": rows,
    }


def _survived(squared_loss: float, squared_norm: float) -> float:
    return 1.0 - (squared_loss / squared_norm) ** 0.5 if squared_norm > 0 else 1.0


def estimate(plan: Plan, outputs: int = 1) -> Estimate:
    """Estimate the cost of a plan: bytes, seconds at the rates seen on two cores, peak memory."""
    statistic = plan.method.statistics
    passes = 1 + (statistic.passes if statistic is not None else 0)
    transferred = plan.bytes_read * passes + plan.bytes_written * outputs
    threads = default_threads()
    counted = statistic.memory_bytes if statistic is not None else 0.0
    most = max((len(tensor.operands) for tensor in plan.tensors), default=0)
    return {
        "tensors": len(plan.tensors),
        "changed": sum(bool(tensor.operands) for tensor in plan.tensors),
        "bytes_read": plan.bytes_read * passes,
        "bytes_written": plan.bytes_written * outputs,
        "seconds": _START_SECONDS + transferred / plan.method.bytes_per_second / max(1, threads),
        "memory_bytes": int(_LOADED_BYTES + counted + threads * TILE_ELEMENTS * 8 * (6 + 2 * most)),
    }


# Seen on 2 cores of an AMD EPYC with AVX512 (benchmarks/results/merge-1.1b.json).
_START_SECONDS = 1.5
_LOADED_BYTES = 150e6
