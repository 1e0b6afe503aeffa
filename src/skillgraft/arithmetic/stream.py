"""The stream: read tiles of every operand, combine them in fp64, round once, write into place.

Memory is a few buffers of a tile for each thread, whatever the model's size. Each output shard is preallocated,
filled in any order, and given its name when it is whole; a rerun after a kill goes on with the shards that are missing.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from skillgraft.arithmetic.buffers import Files, Scratch
from skillgraft.arithmetic.cpu_tiles import Computed, operand_values
from skillgraft.arithmetic.cpu_tiles import compute as compute_on_cpu
from skillgraft.arithmetic.merge_recipe import Linear
from skillgraft.arithmetic.methods import METHODS
from skillgraft.arithmetic.plan import Operand, Plan, TensorPlan, Term
from skillgraft.arithmetic.tensor_sources import Stored
from skillgraft.arithmetic.tiles import Tile, cut, each_tile
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.checkpoint.tensor_io import TORCH_NAMES
from skillgraft.checkpoint.weights import ShardFile, write_index
from skillgraft.errors import CompatibilityError
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
    """What takes the bytes of tensors as they are made: a shard's file, or memory."""

    def write(self, name: str, begin: int, data: memoryview | np.ndarray) -> None:
        """Take bytes of the tensor `name` from its byte `begin` on; threads may do so at once."""


Compute = Callable[..., Computed]
"""A function with the arguments of `cpu_tiles.compute`."""


@dataclass(frozen=True)
class Machine:
    """What runs the arithmetic: the number of threads, and the function that computes a tile."""

    threads: int
    compute: Compute = compute_on_cpu

    def scratches(self) -> list[Scratch]:
        """Return one set of buffers for each thread."""
        return [Scratch() for _ in range(self.threads)]


def stream(
    plan: Plan,
    facts: Mapping[str, Any],
    outputs: Sequence[Output],
    machine: Machine,
    progress: Progress | None = None,
) -> list[Sums]:
    """Write the weights of every output, shard by shard; return per output what rounding cost each changed tensor.

    `facts` are those of the first pass, by tensor name. Raises `CompatibilityError`, naming tensor and operand, for
    NaN, infinity or overflow, and `CheckpointError` for a file that changed since its header was read.
    """
    by_file: dict[Path, list[TensorPlan]] = defaultdict(list)
    for tensor in plan.tensors:
        by_file[tensor.target.info.file].append(tensor)
    sums: list[Sums] = [{} for _ in outputs]
    for output in outputs:
        _remove_strangers(output.directory, {file.name for file in by_file})
    done = _Count(progress, plan.bytes_read + plan.bytes_written * len(outputs))
    scratches = machine.scratches()
    with Files(plan.versions) as files:
        for file, tensors in by_file.items():
            left = [(number, output) for number, output in enumerate(outputs)]
            for number, output in list(left):
                kept = _read_finished(output.directory, file.name)
                if kept is not None:
                    sums[number] |= kept
                    left.remove((number, output))
            if not left:
                done.add(sum(tensor.target.nbytes for tensor in tensors))
                continue
            found = _write_shard(plan, facts, file.name, tensors, [o for _, o in left], machine, files, scratches, done)
            for (number, output), shard_sums in zip(left, found, strict=True):
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
    facts: Mapping[str, Any],
    name: str,
    tensors: Sequence[TensorPlan],
    outputs: Sequence[Output],
    machine: Machine,
    files: Files,
    scratches: Sequence[Scratch],
    done: _Count,
) -> list[Sums]:
    specs = [tensor.spec for tensor in tensors]
    parts: list[dict[str, list[tuple[float, float]]]] = [defaultdict(list) for _ in outputs]
    shards = [ShardFile(output.directory / f"{name}{_PART}", specs, output.metadata) for output in outputs]
    try:

        def visit(tensor: TensorPlan, tile: Tile, scratch: Scratch) -> None:
            scales = [output.scale for output in outputs]
            losses = make_tile(plan, facts, tensor, tile, scales, shards, machine.compute, scratch, files)
            for sums, loss in zip(parts, losses if tensor.operands else [], strict=bool(tensor.operands)):
                sums[tensor.spec.name].append(loss)
            operands = sum(tile.stop <= operand.elements for operand in tensor.operands)
            width = tensor.target.nbytes / max(1, tensor.target.elements) * (1 + operands)
            written = DTYPE_BYTES[tensor.spec.dtype] * len(outputs)
            done.add(round((tile.stop - tile.start) * (width + written)))

        each_tile(tiles_of(tensors), visit, threads=len(scratches), scratches=scratches)
    finally:
        for shard in shards:
            shard.close()
    for shard in shards:
        shard.check_complete()
    for output in outputs:
        os.rename(output.directory / f"{name}{_PART}", output.directory / name)
    return [
        {key: (math.fsum(a for a, _ in pairs), math.fsum(b for _, b in pairs)) for key, pairs in found.items()}
        for found in parts
    ]


def make_tile(
    plan: Plan,
    facts: Mapping[str, Any],
    tensor: TensorPlan,
    tile: Tile,
    scales: Sequence[float],
    sinks: Sequence[Sink],
    compute: Compute,
    scratch: Scratch,
    files: Files,
) -> list[tuple[float, float]]:
    """Make one tile for every λ and give it to its sink; return (squared loss, squared norm of the change) each."""
    operands = [operand for operand in tensor.operands if tile.stop <= operand.elements]
    whole = len(operands) == len(tensor.operands)
    if not whole and (plan.method.of == "models" or plan.method.first_pass == "gram"):
        operands = []  # rows that not every model has are the target's
    if not operands or not any(scales):
        _copy(tensor, tile, sinks, compute, plan, scratch, files)
        return [(0.0, 0.0)] * len(sinks)
    return _combine(plan, facts, tensor, operands, tile, scales, sinks, compute, scratch, files)


def tiles_of(tensors: Iterable[TensorPlan]) -> Iterator[tuple[TensorPlan, Tile]]:
    """Yield every tile of every tensor, each cut where some operand ends."""
    for tensor in tensors:
        for tile in cut(tensor.target.elements, tensor.breaks, tensor.block):
            yield tensor, tile


def _combine(
    plan: Plan,
    facts: Mapping[str, Any],
    tensor: TensorPlan,
    operands: Sequence[Operand],
    tile: Tile,
    scales: Sequence[float],
    shards: Sequence[Sink],
    compute: Compute,
    scratch: Scratch,
    files: Files,
) -> list[tuple[float, float]]:
    """Compute one tile for every λ and write it; return (squared loss, squared norm of the change) for each."""
    vectors = plan.method.of == "vectors"
    made = [number for number, scale in enumerate(scales) if scale != 0 or not vectors]
    done = compute(plan, tensor, operands, tile, facts.get(tensor.spec.name), [scales[n] for n in made], scratch, files)
    if not done.finite:
        raise not_finite(tensor, operands, tile, [scales[n] for n in made], scratch, files)
    losses = [(0.0, 0.0)] * len(scales)
    for row, number in enumerate(made):
        shards[number].write(tensor.spec.name, tile.start * DTYPE_BYTES[tensor.spec.dtype], done.stored[row])
        if vectors:
            losses[number] = (done.squared_losses[row], done.squared_norm)
    if len(made) < len(scales):
        rest = [shard for number, shard in enumerate(shards) if number not in made]
        _copy(tensor, tile, rest, compute, plan, scratch, files)
    return losses


def _copy(
    tensor: TensorPlan,
    tile: Tile,
    shards: Sequence[Sink],
    compute: Compute,
    plan: Plan,
    scratch: Scratch,
    files: Files,
) -> None:
    """Write the target's own elements: its bytes, or one rounding to the planned dtype."""
    width = DTYPE_BYTES[tensor.spec.dtype]
    if tensor.target.dtype == tensor.spec.dtype:
        raw = scratch.empty("copied", ((tile.stop - tile.start) * width,), np.uint8)
        tensor.target.read(*tile, files, raw)
    else:
        cast = replace(plan, method=METHODS["linear"], parameters=Linear(normalize=False))
        alone = Operand(0, 1.0, (Term(1, tensor.target),))
        done = compute(cast, tensor, [alone], tile, None, [1.0], scratch, files)
        if not done.finite:
            raise not_finite(tensor, (), tile, (), scratch, files)
        raw = done.stored[0]
    for shard in shards:
        shard.write(tensor.spec.name, tile.start * width, raw)


def not_finite(
    tensor: TensorPlan,
    operands: Sequence[Operand],
    tile: Tile,
    scales: Sequence[float],
    scratch: Scratch,
    files: Files,
) -> CompatibilityError:
    """Return the error that says which operand holds NaN or infinity, or that the result overflows."""
    name = tensor.spec.name
    for leaf in dict.fromkeys([tensor.target, *(term.leaf for operand in operands for term in operand.terms)]):
        one = replace(tensor, target=leaf) if isinstance(leaf, Stored) else tensor
        values = operand_values(one, [Operand(0, 1.0, (Term(1, leaf),))], tile, scratch, files)[0]
        wrong = int(np.count_nonzero(~np.isfinite(values)))
        if wrong:
            file = leaf.files[-1].file
            return CompatibilityError(
                f"{file.parent}: tensor {name!r} holds NaN or infinity ({wrong} of elements {tile.start} to "
                f"{tile.stop} in {file.name}); expected finite weights: the checkpoint is damaged or its training "
                "diverged"
            )
    largest = max(scales, key=abs, default=0.0)
    change = f" + {largest} · v" if operands else ""
    return CompatibilityError(
        f"tensor {name!r}{change} overflows {TORCH_NAMES[tensor.spec.dtype]}; use a smaller scale or another dtype, "
        "such as float32"
    )


_PART = ".part"
_RECORD = ".finished.json"
_BOOT_FILE = Path("/proc/sys/kernel/random/boot_id")


def _boot() -> str:
    """Return what changes when the machine restarts: what was written before may not have reached the disk."""
    return _BOOT_FILE.read_text().strip() if _BOOT_FILE.is_file() else "unknown"


def _remove_strangers(directory: Path, shards: Collection[str]) -> None:
    """Remove all but shards and their records: small files of a killed run are written anew from what is there now."""
    known = {*shards, *(f"{name}{_RECORD}" for name in shards)}
    for entry in directory.iterdir():
        if entry.name not in known:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _finish(directory: Path, name: str, sums: Sums) -> None:
    record = directory / f"{name}{_RECORD}"
    part = record.with_suffix(_PART)
    part.write_text(json.dumps({"boot": _boot(), "sums": sums}))
    os.rename(part, record)


def _read_finished(directory: Path, name: str) -> Sums | None:
    """Return what is known of a shard that an earlier, killed process finished; None when it must be written."""
    record = directory / f"{name}{_RECORD}"
    if not record.is_file() or not (directory / name).is_file():
        return None
    content = json.loads(record.read_text())
    if content["boot"] != _boot():
        return None
    return {key: (pair[0], pair[1]) for key, pair in content["sums"].items()}
