"""Injection: θ = θ_target + λ·v, streamed into a new checkpoint that otherwise is the target's.

Formula: Parametric Skill Transfer, arXiv 2601.11258. Departure: the report says how much of λ·v survived the rounding
to the stored dtype, which for bf16 can be a noticeable part of an RL delta.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skillgraft.arithmetic.extract import Progress
from skillgraft.arithmetic.methods import add_scaled, frobenius_norm, rounding_loss
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.json_file import write_json
from skillgraft.checkpoint.layout import CONFIG_FILE, PICKLE_SUFFIXES, Layout, read_layout
from skillgraft.checkpoint.provenance import PROVENANCE_FILE, base_of, write_provenance
from skillgraft.checkpoint.tensor_io import torch_dtype
from skillgraft.checkpoint.weights import planned_bytes, planned_dtypes, write_checkpoint
from skillgraft.checkpoint.writer import atomic_directory
from skillgraft.errors import CheckpointError, CompatibilityError, RecipeError, did_you_mean
from skillgraft.skills.compatibility import check_compatibility, match_base
from skillgraft.skills.skill import Skill, load_skill

OUTPUT_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
NORM_TOLERANCE = 1e-3
_WEIGHT_SUFFIXES = PICKLE_SUFFIXES | {".safetensors", ".gguf", ".onnx", ".msgpack", ".h5"}
_COPIED_FOLDERS = ("additional_chat_templates",)


def inject(
    target: str | os.PathLike[str],
    skill: Skill | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    allow_other_base: bool = False,
    dtype: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write θ = θ_target + λ·v as the new checkpoint `out` and return a report.

    λ is `scale` (any finite number; it is rounded to fp32; 0 keeps the target bit for bit). `dtype` (float32,
    bfloat16, float16) stores all float tensors and names itself in the config; None keeps each tensor's own. Config,
    tokenizer, generation config, chat template, other small files and every tensor that the skill does not name are
    the target's. Memory holds a few copies of one tensor.

    The report: `scale`, `dtype`, `remarks` (how the base was recognised), `survived_rounding` =
    1 − ‖stored − exact‖ / ‖λ·v‖ over all tensors (fp64 sums; 1.0 for λ = 0; below 0 where rounding an fp32 target to
    `dtype` costs more than the step), `worst` (`name` and `survived_rounding` of one tensor) and `tensors` (per name:
    `norm` = ‖λ·v‖ and `survived_rounding`).

    Raises `CompatibilityError` (see `check_compatibility`; NaN, infinity or overflow, naming the tensor),
    `CheckpointError` (a skill whose tensors no longer have the norms of its manifest), `MissingPathError`,
    `OutputExistsError`, `StorageError`, and `RecipeError` for a scale or dtype that makes no sense.
    Source: arXiv 2601.11258.
    """
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise RecipeError(f"scale is {scale!r}, expected a finite number such as 1.0")
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise RecipeError(f"dtype {dtype!r} can't store a checkpoint{did_you_mean(dtype, OUTPUT_DTYPES)}")
    layout = read_layout(target)
    loaded = skill if isinstance(skill, Skill) else load_skill(skill)
    remarks = check_compatibility(layout, loaded, allow_other_base)
    dtypes = planned_dtypes(layout, OUTPUT_DTYPES[dtype] if dtype else None)
    inputs = {"target": fingerprint_checkpoint(target), "skill": fingerprint_file(loaded.weights_file)}
    losses: dict[str, tuple[float, float]] = {}
    with atomic_directory(out, needed_bytes=planned_bytes(layout, dtypes)) as partial:
        copy_companions(layout, partial, dtype)
        tensors = _stream(layout, loaded, scale, dtypes, losses, progress)
        metadata = {"skillgraft_inputs": json.dumps(inputs, sort_keys=True)}
        write_checkpoint(partial, layout, tensors, dtypes=dtypes, metadata=metadata)
        report = {"scale": scale, "dtype": dtype, "remarks": remarks, **survival(losses)}
        write_provenance(
            partial,
            kind="inject",
            base=_base(layout, loaded),
            made_by={
                "stage": "inject",
                "scale": scale,
                "dtype": dtype,
                "allow_other_base": allow_other_base,
                "survived_rounding": report["survived_rounding"],
            },
            inputs=inputs,
        )
    return report


def copy_companions(layout: Layout, directory: Path, dtype: str | None) -> None:
    """Copy everything of a checkpoint but weights, index, provenance, adapters and hidden files into `directory`.

    With `dtype`, the copied config names it, so that Transformers loads the weights in what they are stored in.
    """
    for entry in sorted(layout.path.iterdir()):
        skipped = entry.suffix in _WEIGHT_SUFFIXES or entry.name.endswith(".index.json") or entry.name.startswith(".")
        if entry.is_file() and not skipped and entry.name != PROVENANCE_FILE:
            shutil.copyfile(entry, directory / entry.name)
        elif entry.is_dir() and entry.name in _COPIED_FOLDERS:
            shutil.copytree(entry, directory / entry.name)
    if dtype is not None:
        write_json(directory / CONFIG_FILE, _with_dtype(layout.config, dtype))


def survival(losses: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Return the rounding part of the report from (squared loss, squared norm of λ·v) per tensor."""
    rows = {
        name: {"norm": wanted**0.5, "survived_rounding": _survived(lost, wanted)}
        for name, (lost, wanted) in losses.items()
    }
    worst = min(rows, key=lambda name: rows[name]["survived_rounding"])
    lost, wanted = (math.fsum(column) for column in zip(*losses.values(), strict=True))
    return {
        "survived_rounding": _survived(lost, wanted),
        "worst": {"name": worst, "survived_rounding": rows[worst]["survived_rounding"]},
        "tensors": rows,
    }


def _survived(lost: float, wanted: float) -> float:
    return 1.0 - (lost / wanted) ** 0.5 if wanted > 0 else 1.0


def _stream(
    layout: Layout,
    skill: Skill,
    scale: float,
    dtypes: dict[str, str],
    losses: dict[str, tuple[float, float]],
    progress: Progress | None,
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the output in the target's order; fill `losses` for those that the skill names."""
    named = set(skill.names)
    for done, name in enumerate(layout.tensors, start=1):
        tensor, dtype = layout.read(name), torch_dtype(dtypes[name])
        if name in named:
            yield name, _injected(layout, skill, name, tensor, scale, dtype, losses)
        else:
            yield name, tensor.to(dtype)
        if progress is not None:
            progress(name, done, len(layout.tensors))


def _injected(
    layout: Layout,
    skill: Skill,
    name: str,
    tensor: Tensor,
    scale: float,
    dtype: torch.dtype,
    losses: dict[str, tuple[float, float]],
) -> Tensor:
    if scale == 0:
        losses[name] = (0.0, 0.0)
        return tensor.to(dtype)
    delta = skill.delta(name)
    _check_norm(skill, name, delta)
    stored = add_scaled(tensor, delta, scale, dtype)
    if not torch.isfinite(stored).all():
        if not torch.isfinite(tensor).all():
            raise CompatibilityError(
                f"{layout.path}: tensor {name!r} holds NaN or infinity; expected finite weights: the checkpoint is "
                "damaged or its training diverged"
            )
        raise CompatibilityError(
            f"{layout.path}: tensor {name!r} + {scale} · v overflows {dtype}; use a smaller scale or another dtype"
        )
    losses[name] = rounding_loss(stored, tensor, delta, scale)
    return stored


def _check_norm(skill: Skill, name: str, delta: Tensor) -> None:
    """Refuse a delta that is not the one that was extracted: NaN, or another norm than the manifest says."""
    norm, expected = frobenius_norm(delta), skill.norm(name)
    # "not <=" rather than ">": NaN must not pass.
    if not abs(norm - expected) <= NORM_TOLERANCE * expected:
        raise CheckpointError(
            f"{skill.path}: the delta of {name!r} has norm {norm:.6g}, expected {expected:.6g} from skill.json; the "
            "skill is damaged: extract or download it again"
        )


def _base(layout: Layout, skill: Skill) -> dict[str, str | None]:
    """Return the base to record: the target's own, else the skill's where the weights showed it, else unknown."""
    stated = base_of(layout.path)
    if stated is not None:
        return stated
    if skill.manifest.base_is_known and match_base(layout, skill).same:
        return {"id": skill.manifest.base.id, "fingerprint": skill.manifest.base.fingerprint}
    return {"id": None, "fingerprint": None}


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config that names `dtype`, under each key (`dtype`, older `torch_dtype`) and level that it uses."""
    changed = {
        key: _with_dtype(value, dtype)
        if key.endswith("_config") and isinstance(value, dict) and "dtype" in value
        else value
        for key, value in config.items()
    }
    if "torch_dtype" in config:
        changed["torch_dtype"] = dtype
    if "dtype" in config or "torch_dtype" not in config:
        changed["dtype"] = dtype
    return changed
