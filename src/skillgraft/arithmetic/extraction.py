"""Extraction: v = θ_RL − θ_SFT as a skill artefact, tensor by tensor.

Formula: Parametric Skill Transfer, arXiv 2601.11258. Departures: tensors that did not change are left out of the
artefact (injection leaves the target's alone, which is the same); a LoRA run is kept as its exact factors.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skillgraft.arithmetic.buffers import Files, Scratch
from skillgraft.arithmetic.cpu_tiles import Computed, compute, operand_values
from skillgraft.arithmetic.extraction_inputs import (
    Operands,
    base_reference,
    check_equal_integers,
    match_operands,
    read_factors,
    verify_adapter,
)
from skillgraft.arithmetic.merge_recipe import Linear
from skillgraft.arithmetic.methods import METHODS, Method
from skillgraft.arithmetic.norms import product_norm, sum_of_squares
from skillgraft.arithmetic.plan import Operand, TensorPlan, Term
from skillgraft.arithmetic.tensor_sources import Stored
from skillgraft.arithmetic.tiles import Tile, cut, default_threads, each_tile
from skillgraft.checkpoint.fingerprint import recorded_sha256
from skillgraft.checkpoint.header import DTYPE_BYTES, TensorSpec
from skillgraft.checkpoint.provenance import software_versions
from skillgraft.checkpoint.tensor_io import torch_dtype
from skillgraft.checkpoint.tokenizer import tokenizer_identity
from skillgraft.checkpoint.weights import SafetensorsAppender
from skillgraft.checkpoint.writer import atomic_directory
from skillgraft.errors import CompatibilityError, RecipeError, did_you_mean
from skillgraft.skills.architecture import architecture_facts
from skillgraft.skills.forms import DENSE, LOWRANK, Storage, decode_lowrank, stored_names, stored_specs
from skillgraft.skills.manifest import SKILL_FORMULA, CheckpointReference, Manifest, TensorEntry
from skillgraft.skills.sketch import sketch_weights
from skillgraft.skills.skill import WEIGHTS_FILE, Skill, load_skill, write_skill_description
from skillgraft.support.progress import Progress

SKILL_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass
class _Record:
    """What streaming learns of the tensors: their entries, and squared norms of exact and lost parts."""

    entries: dict[str, TensorEntry] = field(default_factory=dict)
    exact: float = 0.0
    lost: float = 0.0


def extract(
    rl: str | os.PathLike[str],
    sft: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    domain: str | None = None,
    recipe: str | None = None,
    seed: int | None = None,
    licence: str | None = None,
    language: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Skill:
    """Write the skill v = θ_RL − θ_SFT into the new directory `out` and return it.

    `rl` is a full checkpoint; a checkpoint with its LoRA adapter in `adapter/`, whose factors are then kept exactly
    (checked against the full weights); or a PEFT adapter directory. `dtype` is the storage: float32, or bfloat16 at
    half the size with its `reconstruction_error` in the manifest. `domain`, `recipe`, `seed`, `licence` and `language`
    (ISO 639) are recorded. `progress` is called after each tensor with the elements done and all of them.
    Memory holds a few tiles of each model.

    Raises `MissingPathError`, `CheckpointError`, `CompatibilityError` (operands that don't match, NaN or infinity, or
    no difference at all), `OutputExistsError`, `StorageError`, and `RecipeError` for an unknown dtype.
    Source: arXiv 2601.11258 (formula), arXiv 2106.09685 (low-rank form).
    """
    if dtype not in SKILL_DTYPES:
        raise RecipeError(f"dtype {dtype!r} can't store a skill{did_you_mean(dtype, SKILL_DTYPES)}")
    code = SKILL_DTYPES[dtype]
    operands = match_operands(rl, sft)
    planned = _plan(operands, code)
    metadata = {"format": "pt", "skillgraft_inputs": json.dumps(_inputs(operands), sort_keys=True)}
    with atomic_directory(out, needed_bytes=sum(spec.nbytes for spec in planned)) as partial:
        verify_adapter(operands)
        with SafetensorsAppender(partial / WEIGHTS_FILE, planned, metadata) as file:
            record = _stream(operands, code, file, threads or default_threads(), progress)
        if not record.entries:
            raise CompatibilityError(
                f"{operands.rl_path} and {operands.sft.path} have the same weights: there is no skill to extract; "
                "check that the RL model is meant, and that its training changed anything at its stored precision"
            )
        manifest = Manifest(
            formula=SKILL_FORMULA,
            created=timestamp(),
            skillgraft_version=importlib.metadata.version("skillgraft"),
            base=base_reference(operands),
            sft=CheckpointReference(fingerprint=operands.sft_fingerprint, sha256=recorded_sha256(operands.sft.files)),
            rl=CheckpointReference(
                fingerprint=operands.rl_fingerprint,
                sha256=recorded_sha256(operands.rl.files if operands.rl is not None else ()),
            ),
            tokenizer=tokenizer_identity(operands.sft.path),
            architecture=architecture_facts(operands.sft),
            domain=domain,
            recipe=recipe,
            seed=seed,
            licence=licence,
            language=language,
            reconstruction_error=(record.lost / record.exact) ** 0.5,
            tensors=record.entries,
            versions=software_versions(),
            sketch=sketch_weights(operands.sft),
        )
        write_skill_description(partial, manifest)
    return load_skill(Path(out))


def timestamp() -> str:
    """Return the present time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _inputs(operands: Operands) -> dict[str, str]:
    return {"rl": operands.rl_fingerprint, "sft": operands.sft_fingerprint}


def _plan(operands: Operands, code: str) -> list[TensorSpec]:
    """Return every tensor that the artefact may hold."""
    specs: list[TensorSpec] = []
    if operands.adapter is not None:
        for name, delta in operands.adapter.deltas.items():
            specs += stored_specs(name, Storage(LOWRANK, delta.shape, code, delta.rank))
        return specs
    return [TensorSpec(name, code, info.shape) for name, info in operands.sft.tensors.items() if info.is_float]


def _stream(
    operands: Operands, code: str, file: SafetensorsAppender, threads: int, progress: Progress | None
) -> _Record:
    record = _Record()
    scratches = [Scratch() for _ in range(threads)]
    names = list(operands.adapter.deltas if operands.adapter is not None else operands.sft.tensors)
    sizes, done = {name: operands.sft.tensors[name].elements for name in names}, 0
    with Files() as files:
        for name in names:
            if operands.adapter is not None:
                _keep_lowrank(operands, name, code, file, record)
            else:
                _keep_dense(operands, name, code, file, record, files, scratches)
            done += sizes[name]
            if progress is not None:
                progress(done, sum(sizes.values()))
    return record


def _keep_lowrank(operands: Operands, name: str, code: str, file: SafetensorsAppender, record: _Record) -> None:
    if operands.adapter is None:
        return
    delta = operands.adapter.deltas[name]
    import torch

    factors = read_factors(delta, torch_dtype(code))
    norm = product_norm(*factors)
    if norm == 0:
        return
    if code != "F32":
        exact = decode_lowrank(*read_factors(delta, torch.float32))
        record.exact += sum_of_squares(exact)
        record.lost += sum_of_squares(decode_lowrank(*factors) - exact)
    else:
        record.exact += norm**2
    for key, tensor in zip(stored_names(name, LOWRANK), factors, strict=True):
        file.add(key, tensor)
    record.entries[name] = TensorEntry.model_validate(
        {"form": LOWRANK, "rank": delta.rank, "shape": delta.shape, "dtype": code, "norm": norm}
    )


def _keep_dense(
    operands: Operands,
    name: str,
    code: str,
    file: SafetensorsAppender,
    record: _Record,
    files: Files,
    scratches: Sequence[Scratch],
) -> None:
    if operands.rl is None:
        return
    if not operands.sft.tensors[name].is_float:
        check_equal_integers(name, operands.rl.read(name), operands.sft.read(name), operands.rl_path)
        return
    info = operands.sft.tensors[name]
    rl, sft = Stored(operands.rl.tensors[name]), Stored(info)
    tensor = TensorPlan(TensorSpec(name, code, info.shape), sft, (Operand(0, 1.0, (Term(1, rl), Term(-1, sft))),))
    sums: list[Computed] = []

    def visit(_: None, tile: Tile, scratch: Scratch) -> None:
        found = compute(_DIFFERENCE, tensor, tensor.operands, tile, None, [1.0], scratch, files)
        if not found.finite:
            raise _not_finite(operands, name, rl, sft, tile, files)
        file.put(tile.start * DTYPE_BYTES[code], found.stored[0])
        sums.append(found)

    each_tile(((None, tile) for tile in cut(sft.elements)), visit, threads=len(scratches), scratches=scratches)
    exact = math.fsum(part.squared_norm for part in sums)
    if exact == 0:
        return
    record.exact += exact
    record.lost += math.fsum(part.squared_losses[0] for part in sums) if code != "F32" else 0.0
    file.keep(name)
    norm = math.fsum(part.squared_stored for part in sums) ** 0.5
    record.entries[name] = TensorEntry.model_validate({"form": DENSE, "shape": info.shape, "dtype": code, "norm": norm})


class _Difference(NamedTuple):
    """What `compute` needs of a plan to make RL − SFT itself, without a target below it."""

    method: Method
    parameters: Linear


_DIFFERENCE: Any = _Difference(METHODS["linear"], Linear(normalize=False))


def _not_finite(operands: Operands, name: str, rl: Stored, sft: Stored, tile: Tile, files: Files) -> CompatibilityError:
    for path, leaf in ((operands.rl_path, rl), (operands.sft.path, sft)):
        alone = TensorPlan(TensorSpec(name, "F64", leaf.info.shape), leaf, ())
        values = operand_values(alone, [Operand(0, 1.0, (Term(1, leaf),))], tile, Scratch(), files)
        wrong = int(np.count_nonzero(~np.isfinite(values)))
        if wrong:
            return CompatibilityError(
                f"{path}: tensor {name!r} holds {wrong} elements that are NaN or infinite; expected finite weights: "
                "the checkpoint is damaged or its training diverged"
            )
    return CompatibilityError(f"tensor {name!r}: RL − SFT overflows the stored dtype; expected smaller weights")
