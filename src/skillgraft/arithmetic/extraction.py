"""Extract a skill vector: v = θ_RL − θ_SFT as a skill artifact, tensor by tensor.

Formula: Parametric Skill Transfer, arXiv 2601.11258. Departures: tensors that did not change are left out of the
artifact (injection leaves the target's alone, which is the same); a LoRA run is kept as its exact factors.
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

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.cpu_tiles import ComputedTile, compute
from skillgraft.arithmetic.extraction_inputs import (
    ExtractionInputs,
    base_reference,
    check_equal_integers,
    match_inputs,
    read_factors,
    verify_adapter,
)
from skillgraft.arithmetic.methods.linear import LINEAR, Linear
from skillgraft.arithmetic.norms import product_norm, sum_of_squares
from skillgraft.arithmetic.plan_types import Operand, TensorPlan, Term
from skillgraft.arithmetic.tensor_sources import Stored
from skillgraft.arithmetic.tile_values import operand_values
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
    """Entries of the streamed tensors, and squared norms of the exact vector and of what its storage lost."""

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
    license: str | None = None,
    language: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Skill:
    """Extract a skill vector: write v = θ_RL − θ_SFT into the new directory `out` and return it.

    `rl` is a full checkpoint; a checkpoint with its LoRA adapter in `adapter/`, whose factors are then kept exactly
    (checked against the full weights); or a PEFT adapter directory. `dtype` is the storage: float32, or bfloat16 at
    half the size with its `reconstruction_error` in the manifest. `domain`, `recipe`, `seed`, `license` and `language`
    (ISO 639) go into the manifest. `progress` is called after each tensor with its name, the elements done and the
    total. Memory holds a few tiles of each model.

    Raises `MissingPathError`, `CheckpointError`, `CompatibilityError` (inputs that don't match, NaN or infinity, or no
    difference at all), `OutputExistsError`, `StorageError`, and `RecipeError` for an unknown dtype.
    Source: arXiv 2601.11258 (formula), arXiv 2106.09685 (low-rank form).
    """
    if dtype not in SKILL_DTYPES:
        raise RecipeError(f"dtype {dtype!r} can't store a skill{did_you_mean(dtype, SKILL_DTYPES)}")
    code = SKILL_DTYPES[dtype]
    inputs = match_inputs(rl, sft)
    planned = _plan(inputs, code)
    metadata = {"format": "pt", "skillgraft_inputs": json.dumps(_fingerprints(inputs), sort_keys=True)}
    with atomic_directory(out, needed_bytes=sum(spec.nbytes for spec in planned)) as partial:
        verify_adapter(inputs)
        with SafetensorsAppender(partial / WEIGHTS_FILE, planned, metadata) as file:
            record = _stream(inputs, code, file, threads or default_threads(), progress)
        if not record.entries:
            raise CompatibilityError(
                f"{inputs.rl_path} and {inputs.sft.path} have the same weights: there is no skill to extract; "
                "check that the RL model is meant, and that its training changed anything at its stored precision"
            )
        manifest = Manifest(
            formula=SKILL_FORMULA,
            created=timestamp(),
            skillgraft_version=importlib.metadata.version("skillgraft"),
            base=base_reference(inputs),
            sft=CheckpointReference(fingerprint=inputs.sft_fingerprint, sha256=recorded_sha256(inputs.sft.files)),
            rl=CheckpointReference(
                fingerprint=inputs.rl_fingerprint,
                sha256=recorded_sha256(inputs.rl.files if inputs.rl is not None else ()),
            ),
            tokenizer=tokenizer_identity(inputs.sft.path),
            architecture=architecture_facts(inputs.sft),
            domain=domain,
            recipe=recipe,
            seed=seed,
            license=license,
            language=language,
            reconstruction_error=(record.lost / record.exact) ** 0.5,
            tensors=record.entries,
            versions=software_versions(),
            sketch=sketch_weights(inputs.sft),
            remarks=list(inputs.remarks),
        )
        write_skill_description(partial, manifest)
    return load_skill(Path(out))


def timestamp() -> str:
    """Return the present time in UTC, to the second, in ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _fingerprints(inputs: ExtractionInputs) -> dict[str, str]:
    return {"rl": inputs.rl_fingerprint, "sft": inputs.sft_fingerprint}


def _plan(inputs: ExtractionInputs, code: str) -> list[TensorSpec]:
    """Return every tensor that the artifact may hold."""
    specs: list[TensorSpec] = []
    if inputs.adapter is not None:
        for name, delta in inputs.adapter.deltas.items():
            specs += stored_specs(name, Storage(LOWRANK, delta.shape, code, delta.rank))
        return specs
    return [TensorSpec(name, code, info.shape) for name, info in inputs.sft.tensors.items() if info.is_float]


def _stream(
    inputs: ExtractionInputs, code: str, file: SafetensorsAppender, threads: int, progress: Progress | None
) -> _Record:
    record = _Record()
    thread_buffers = [Buffers() for _ in range(threads)]
    names = list(inputs.adapter.deltas if inputs.adapter is not None else inputs.sft.tensors)
    sizes, done = {name: inputs.sft.tensors[name].elements for name in names}, 0
    with Files() as files:
        for name in names:
            if inputs.adapter is not None:
                _keep_lowrank(inputs, name, code, file, record)
            else:
                _keep_dense(inputs, name, code, file, record, files, thread_buffers)
            done += sizes[name]
            if progress is not None:
                progress(done, sum(sizes.values()))
    return record


def _keep_lowrank(inputs: ExtractionInputs, name: str, code: str, file: SafetensorsAppender, record: _Record) -> None:
    if inputs.adapter is None:
        return
    delta = inputs.adapter.deltas[name]
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
    inputs: ExtractionInputs,
    name: str,
    code: str,
    file: SafetensorsAppender,
    record: _Record,
    files: Files,
    thread_buffers: Sequence[Buffers],
) -> None:
    if inputs.rl is None:
        return
    if not inputs.sft.tensors[name].is_float:
        check_equal_integers(name, inputs.rl.read(name), inputs.sft.read(name), inputs.rl_path)
        return
    info = inputs.sft.tensors[name]
    rl, sft = Stored(inputs.rl.tensors[name]), Stored(info)
    tensor = TensorPlan(TensorSpec(name, code, info.shape), sft, (Operand(0, 1.0, (Term(1, rl), Term(-1, sft))),))
    tiles: list[ComputedTile] = []

    def visit(_: None, tile: Tile, buffers: Buffers) -> None:
        computed = compute(LINEAR, _PLAIN_SUM, tensor, tensor.operands, tile, None, [1.0], buffers, files)
        if not computed.finite:
            raise _not_finite(inputs, name, rl, sft, tile, files)
        file.put(tile.start * DTYPE_BYTES[code], computed.stored[0])
        tiles.append(computed)

    each_tile(((None, tile) for tile in cut(sft.elements)), visit, thread_buffers)
    exact = math.fsum(computed.squared_norm for computed in tiles)
    if exact == 0:
        return
    record.exact += exact
    record.lost += math.fsum(computed.squared_losses[0] for computed in tiles) if code != "F32" else 0.0
    file.keep(name)
    norm = math.fsum(computed.squared_stored for computed in tiles) ** 0.5
    record.entries[name] = TensorEntry.model_validate({"form": DENSE, "shape": info.shape, "dtype": code, "norm": norm})


_PLAIN_SUM = Linear(normalize=False)
"""RL − SFT itself, as the one operand of a sum without a target below it."""


def _not_finite(
    inputs: ExtractionInputs, name: str, rl: Stored, sft: Stored, tile: Tile, files: Files
) -> CompatibilityError:
    for path, source in ((inputs.rl_path, rl), (inputs.sft.path, sft)):
        alone = TensorPlan(TensorSpec(name, "F64", source.info.shape), source, ())
        values = operand_values(alone, [Operand(0, 1.0, (Term(1, source),))], tile, Buffers(), files)
        wrong = int(np.count_nonzero(~np.isfinite(values)))
        if wrong:
            return CompatibilityError(
                f"{path}: tensor {name!r} holds {wrong} elements that are NaN or infinite; expected finite weights: "
                "the checkpoint is damaged or its training diverged"
            )
    return CompatibilityError(f"tensor {name!r}: RL − SFT overflows the stored dtype; expected smaller weights")
