"""The stream: read tiles of every operand, combine them in fp64, round once, write into place.

Memory is a few buffers of a tile for each thread, whatever the model's size. Each output shard is preallocated,
filled in any order, and given its name when it is whole; a rerun after a kill writes only the missing shards.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.cpu_tiles import ComputedTile
from skillgraft.arithmetic.cpu_tiles import compute as compute_on_cpu
from skillgraft.arithmetic.methods.linear import LINEAR, Linear
from skillgraft.arithmetic.plan import Plan
from skillgraft.arithmetic.plan_types import Operand, TensorPlan, Term, tiles_of
from skillgraft.arithmetic.tile_values import not_finite
from skillgraft.arithmetic.tiles import Tile, each_tile
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.checkpoint.weights import ShardFile, write_index
from skillgraft.support.atomic import atomic_write_text
from skillgraft.support.progress import Progress

Sums = dict[str, tuple[float, float]]
"""Per tensor (‖stored − exact‖², ‖change‖² at λ = 1), in fp64."""


@dataclass(frozen=True)
class Output:
    """One checkpoint to be written: its (temporary) directory and the λ that multiplies the change to the base."""

    directory: Path
    scale: float = 1.0
    metadata: Mapping[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """Receives the bytes of tensors as they are computed: a shard's file, or memory."""

    def write(self, name: str, begin: int, data: memoryview | np.ndarray) -> None:
        """Take bytes of the tensor `name` from its byte `begin` on; called by several threads."""


Compute = Callable[..., ComputedTile]
"""A function with the arguments of `cpu_tiles.compute`."""


@dataclass(frozen=True)
class Engine:
    """The number of threads, and the function that computes a tile."""

    threads: int
    compute: Compute = compute_on_cpu

    def thread_buffers(self) -> list[Buffers]:
        """Return one set of buffers for each thread."""
        return [Buffers() for _ in range(self.threads)]


def gather_statistics(plan: Plan, engine: Engine) -> dict[str, Any]:
    """Return the statistics that the plan's method asks for, by the name of each tensor that changes."""
    statistic = plan.method.statistics
    if statistic is None:
        return {}
    changed = [tensor for tensor in plan.tensors if tensor.operands]
    return statistic.gather(changed, plan.parameters, engine.thread_buffers())


def stream(
    plan: Plan,
    statistics: Mapping[str, Any],
    outputs: Sequence[Output],
    engine: Engine,
    progress: Progress | None = None,
) -> list[Sums]:
    """Write the weights of every output, shard by shard; return for each the rounding loss of every changed tensor.

    `statistics` are those that the plan's method asks for, by tensor name (`gather_statistics`). Raises
    `CompatibilityError`, naming tensor and operand, for NaN, infinity or overflow, and `CheckpointError` for a file
    that changed since its header was read.
    """
    by_file: dict[Path, list[TensorPlan]] = defaultdict(list)
    for tensor in plan.tensors:
        by_file[tensor.target.info.file].append(tensor)
    sums: list[Sums] = [{} for _ in outputs]
    for output in outputs:
        _remove_other_files(output.directory, {file.name for file in by_file})
    done = _Count(progress, plan.bytes_read + plan.bytes_written * len(outputs))
    thread_buffers = engine.thread_buffers()
    with Files(plan.versions) as files:
        for file, tensors in by_file.items():
            unfinished = [(number, output) for number, output in enumerate(outputs)]
            for number, output in list(unfinished):
                finished = _read_finished(output.directory, file.name)
                if finished is not None:
                    sums[number] |= finished
                    unfinished.remove((number, output))
            if not unfinished:
                done.add(sum(tensor.target.nbytes for tensor in tensors))
                continue
            losses = _write_shard(
                plan, statistics, file.name, tensors, [o for _, o in unfinished], engine, files, thread_buffers, done
            )
            for (number, output), shard_sums in zip(unfinished, losses, strict=True):
                _finish(output.directory, file.name, shard_sums)
                sums[number] |= shard_sums
        files.check_unchanged()
    for output in outputs:
        if plan.target.index is not None:
            write_index(output.directory, plan.target, plan.bytes_written)
        for record in output.directory.glob(f"*{_RECORD}"):
            record.unlink()
    return sums


@dataclass
class _Count:
    progress: Progress | None
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(min(self.done, self.total), self.total)


def _write_shard(
    plan: Plan,
    statistics: Mapping[str, Any],
    name: str,
    tensors: Sequence[TensorPlan],
    outputs: Sequence[Output],
    engine: Engine,
    files: Files,
    thread_buffers: Sequence[Buffers],
    done: _Count,
) -> list[Sums]:
    specs = [tensor.spec for tensor in tensors]
    tile_sums: list[dict[str, list[tuple[float, float]]]] = [defaultdict(list) for _ in outputs]
    shards = [ShardFile(output.directory / f"{name}{_PART}", specs, output.metadata) for output in outputs]
    try:

        def visit(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
            scales = [output.scale for output in outputs]
            losses = make_tile(plan, statistics, tensor, tile, scales, shards, engine.compute, buffers, files)
            for sums, loss in zip(tile_sums, losses if tensor.operands else [], strict=bool(tensor.operands)):
                sums[tensor.spec.name].append(loss)
            operands = sum(tile.stop <= operand.elements for operand in tensor.operands)
            width = tensor.target.nbytes / max(1, tensor.target.elements) * (1 + operands)
            written = DTYPE_BYTES[tensor.spec.dtype] * len(outputs)
            done.add(round((tile.stop - tile.start) * (width + written)))

        each_tile(tiles_of(tensors), visit, thread_buffers)
    finally:
        for shard in shards:
            shard.close()
    for shard in shards:
        shard.check_complete()
    for output in outputs:
        os.rename(output.directory / f"{name}{_PART}", output.directory / name)
    return [
        {key: (math.fsum(a for a, _ in pairs), math.fsum(b for _, b in pairs)) for key, pairs in of_output.items()}
        for of_output in tile_sums
    ]


def make_tile(
    plan: Plan,
    statistics: Mapping[str, Any],
    tensor: TensorPlan,
    tile: Tile,
    scales: Sequence[float],
    sinks: Sequence[Sink],
    compute: Compute,
    buffers: Buffers,
    files: Files,
) -> list[tuple[float, float]]:
    """Make one tile for every λ and give it to its sink; return (squared loss, squared norm of the change) each."""
    operands = [operand for operand in tensor.operands if tile.stop <= operand.elements]
    whole = len(operands) == len(tensor.operands)
    if not whole and (plan.method.inputs == "models" or not plan.method.weighted):
        operands = []  # rows that not every model has are the target's
    if not operands or not any(scales):
        _copy(tensor, tile, sinks, compute, buffers, files)
        return [(0.0, 0.0)] * len(sinks)
    return _combine(plan, statistics, tensor, operands, tile, scales, sinks, compute, buffers, files)


def _combine(
    plan: Plan,
    statistics: Mapping[str, Any],
    tensor: TensorPlan,
    operands: Sequence[Operand],
    tile: Tile,
    scales: Sequence[float],
    shards: Sequence[Sink],
    compute: Compute,
    buffers: Buffers,
    files: Files,
) -> list[tuple[float, float]]:
    """Compute one tile for every λ and write it; return (squared loss, squared norm of the change) for each."""
    vectors = plan.method.inputs == "vectors"
    changing = [number for number, scale in enumerate(scales) if scale != 0 or not vectors]
    changing_scales = [scales[number] for number in changing]
    of_tensor = statistics.get(tensor.spec.name)
    computed = compute(plan.method, plan.parameters, tensor, operands, tile, of_tensor, changing_scales, buffers, files)
    if not computed.finite:
        raise not_finite(tensor, operands, tile, changing_scales, buffers, files)
    losses = [(0.0, 0.0)] * len(scales)
    for row, number in enumerate(changing):
        shards[number].write(tensor.spec.name, tile.start * DTYPE_BYTES[tensor.spec.dtype], computed.stored[row])
        if vectors:
            losses[number] = (computed.squared_losses[row], computed.squared_norm)
    if len(changing) < len(scales):
        unchanged = [shard for number, shard in enumerate(shards) if number not in changing]
        _copy(tensor, tile, unchanged, compute, buffers, files)
    return losses


def _copy(
    tensor: TensorPlan,
    tile: Tile,
    shards: Sequence[Sink],
    compute: Compute,
    buffers: Buffers,
    files: Files,
) -> None:
    """Write the target's own elements: its bytes, or one rounding to the planned dtype."""
    width = DTYPE_BYTES[tensor.spec.dtype]
    if tensor.target.dtype == tensor.spec.dtype:
        raw = buffers.empty("copied", ((tile.stop - tile.start) * width,), np.uint8)
        tensor.target.read(*tile, files, raw)
    else:
        alone = Operand(0, 1.0, (Term(1, tensor.target),))
        computed = compute(LINEAR, _PLAIN_SUM, tensor, [alone], tile, None, [1.0], buffers, files)
        if not computed.finite:
            raise not_finite(tensor, (), tile, (), buffers, files)
        raw = computed.stored[0]
    for shard in shards:
        shard.write(tensor.spec.name, tile.start * width, raw)


_PLAIN_SUM = Linear(normalize=False)

_PART = ".part"
_RECORD = ".finished.json"
_BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


def _boot() -> str:
    """Return an id of this boot: what was written before a restart may not have reached the disk."""
    return _BOOT_FILE.read_text().strip() if _BOOT_FILE.is_file() else "unknown"


def _remove_other_files(directory: Path, shards: Collection[str]) -> None:
    """Remove all but shards and their records: small files of a killed run are written again."""
    known = {*shards, *(f"{name}{_RECORD}" for name in shards)}
    for entry in directory.iterdir():
        if entry.name not in known:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _finish(directory: Path, name: str, sums: Sums) -> None:
    record = directory / f"{name}{_RECORD}"
    atomic_write_text(record, json.dumps({"boot": _boot(), "sums": sums}))


def _read_finished(directory: Path, name: str) -> Sums | None:
    """Return the losses of a shard that an earlier, killed process finished; None if it must be written."""
    record = directory / f"{name}{_RECORD}"
    if not record.is_file() or not (directory / name).is_file():
        return None
    content = json.loads(record.read_text())
    if content["boot"] != _boot():
        return None
    return {key: (pair[0], pair[1]) for key, pair in content["sums"].items()}
