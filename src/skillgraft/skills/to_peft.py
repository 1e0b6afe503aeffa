"""A skill as a PEFT LoRA adapter, exactly where its deltas are low rank and on linear modules.

The adapter's delta is (alpha / r) · B @ A (arXiv 2106.09685 section 4.1) with alpha = r for every module, so that
loaders which read one scaling from the config, as vLLM does, apply the same as those that read `alpha_pattern`.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from skillgraft.adapters.peft_file import ADAPTER_FILE
from skillgraft.checkpoint.fingerprint import fingerprint_file
from skillgraft.checkpoint.header import TensorSpec
from skillgraft.checkpoint.layout import ADAPTER_CONFIG_FILE
from skillgraft.checkpoint.tensor_io import torch_dtype
from skillgraft.checkpoint.weight_names import names_of_type
from skillgraft.checkpoint.weights import SafetensorsAppender
from skillgraft.checkpoint.writer import atomic_directory
from skillgraft.errors import CheckpointError, CompatibilityError, RecipeError
from skillgraft.skills.card import adapter_card_text
from skillgraft.skills.forms import LOWRANK
from skillgraft.skills.library import resolve_skill
from skillgraft.skills.modules import by_kind, module_kind, root_of_squares
from skillgraft.skills.skill import CARD_FILE, Skill, load_skill
from skillgraft.support.atomic import atomic_write_json
from skillgraft.support.progress import Progress

if TYPE_CHECKING:
    from jaxtyping import Float

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of `max_lora_rank` in vLLM (0.14); it refuses adapters of a larger r."""
VLLM_DEFAULT_RANK = 16

NORM_TOLERANCE = 1e-3

TRANSPOSED_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose linear layers store (in, out), unlike the factors here."""

_EXPERT = re.compile(r"\.experts\.\d+\.")


class _Module(NamedTuple):
    """One parameter that goes into the adapter, with the rank that it gets there; `exact` when no direction is cut.

    `in_memory` is the name that the loaded model, and so PEFT, gives it.
    """

    name: str
    in_memory: str
    rank: int
    exact: bool


def convert_to_peft(
    skill: Skill | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    scale: float = 1.0,
    rank: int | None = None,
    drop: bool = False,
    pad: bool = False,
    base_model: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write λ·v as the new PEFT LoRA adapter directory `out` and return a report.

    `skill` is a skill, its directory or name in the library. Low-rank deltas of linear modules go as they are (factors
    that are stored otherwise than as two matrices up to fp32 rounding); λ (`scale`) is multiplied into B. `rank` bounds
    every module's rank: other deltas of linear modules then go as their best approximation of that rank, and low-rank
    ones above it are cut to it. Deltas that no LoRA holds (norms, embeddings, biases, stacked experts) are refused by
    name, or left out with `drop`. `pad` gives all modules one rank by zeros instead of a `rank_pattern`. `base_model`
    is what the adapter's config names as its base, by default the id of the skill's.

    The report: `modules`, `rank` (the largest), `exact`, `error` = ‖adapter − λ·v‖ / ‖λ·v‖ over all of the skill,
    `error_by_kind`, `dropped` (norms by name), `remarks`. Memory holds one delta.

    Raises `CompatibilityError` naming what does not fit, `CheckpointError` for a delta that no longer has the norm of
    the manifest, `RecipeError` for an invalid scale or rank,
    `OutputExistsError`, `StorageError`, and as `load_skill`.
    """
    if not math.isfinite(scale) or scale == 0:
        raise RecipeError(f"scale is {scale!r}, expected a finite number other than 0, such as 1.0")
    if rank is not None and rank < 1:
        raise RecipeError(f"rank is {rank}, expected a positive number such as 32")
    source = skill if isinstance(skill, Skill) else load_skill(resolve_skill(skill).path)
    modules, unfit = _plan(source, rank)
    if unfit and not drop:
        raise _refusal(source, unfit, rank)
    if not modules:
        raise CompatibilityError(f"{source.path}: no delta is on a linear module; there is nothing for an adapter")
    largest = max(module.rank for module in modules)
    lost = {name: source.norm(name) for name in unfit}
    specs = {module.name: _specs(source, module, largest if pad else module.rank, scale) for module in modules}
    inputs = json.dumps({"skill": fingerprint_file(source.weights_file)})
    needed = sum(spec.nbytes for pair in specs.values() for spec in pair)
    with atomic_directory(out, needed_bytes=needed) as partial:
        planned = [spec for pair in specs.values() for spec in pair]
        with SafetensorsAppender(
            partial / ADAPTER_FILE, planned, {"format": "pt", "skillgraft_inputs": inputs}
        ) as file:
            for done, module in enumerate(modules, 1):
                a, b, lost[module.name] = _factors(source, module)
                for spec, factor in zip(specs[module.name], (a, b.float() * scale), strict=True):
                    stored = factor.to(torch_dtype(spec.dtype))
                    if not torch.isfinite(stored).all():
                        raise CompatibilityError(
                            f"{source.path}: the factors of {module.name!r} times {scale:g} are not finite in "
                            f"{spec.dtype}; expected a smaller scale, or the skill is damaged"
                        )
                    file.add(spec.name, _padded(stored, spec.shape))
                if progress is not None:
                    progress(done, len(modules))
        atomic_write_json(partial / ADAPTER_CONFIG_FILE, _config(source, modules, largest, pad, base_model))
        report = _report(source, modules, largest, lost, unfit, scale, pad)
        (partial / CARD_FILE).write_text(adapter_card_text(source.manifest, report), encoding="utf-8")
    return report


def best_factors(
    delta: Float[Tensor, "out_features in_features"], rank: int
) -> tuple[Float[Tensor, "rank in_features"], Float[Tensor, "out_features rank"]]:
    """Return (a, b) in fp32 with b @ a the best approximation of that rank (Eckart–Young), by a Gram matrix in fp64.

    With W = U Σ Vᵀ, b = U √Σ and a = √Σ Vᵀ; U comes from the eigenvectors of W Wᵀ (or V from Wᵀ W, the smaller).
    """
    wide = delta.double()
    if wide.shape[0] > wide.shape[1]:
        b, a = best_factors(delta.T, rank)
        return a.T.contiguous(), b.T.contiguous()
    _, vectors = torch.linalg.eigh(wide @ wide.T)  # in ascending order
    left = vectors.flip(1)[:, :rank]
    right = left.T @ wide
    root = right.norm(dim=1, keepdim=True).sqrt()
    return torch.where(root > 0, right / root, 0.0).float().contiguous(), (left * root.T).float().contiguous()


def _plan(skill: Skill, bound: int | None) -> tuple[list[_Module], dict[str, str]]:
    """Return the modules of the adapter, and the reason for each parameter that is left out."""
    modules, unfit = [], {}
    architecture = skill.manifest.architecture
    rename = names_of_type(architecture.model_type)
    for name in skill.names:
        entry = skill.entry(name)
        kind = module_kind(name)
        looked_up = kind == "embedding" or (kind != "head" and entry.shape[:1] == (architecture.vocab_size,))
        if looked_up or kind == "norm" or len(entry.shape) != 2 or not name.endswith(".weight"):
            unfit[name] = "no linear module's weight"
        elif _EXPERT.search(name) or (in_memory := rename(name)) is None:
            unfit[name] = "one of the experts that Transformers stacks into one parameter"
        elif architecture.model_type in TRANSPOSED_MODELS:
            unfit[name] = f"{architecture.model_type} stores (in, out)"
        elif entry.rank is not None and (bound is None or entry.rank <= bound):
            modules.append(_Module(name, in_memory, entry.rank, exact=True))
        elif bound is None:
            unfit[name] = f"stored {entry.form}, of full rank: --rank would bound it"
        else:
            modules.append(_Module(name, in_memory, min(bound, *entry.shape), exact=bound >= min(entry.shape)))
    return modules, unfit


def _refusal(skill: Skill, unfit: Mapping[str, str], rank: int | None) -> CompatibilityError:
    share = _share(skill, unfit)
    first_reasons = "; ".join(f"{name} ({reason})" for name, reason in list(unfit.items())[:5])
    more = f"; and {len(unfit) - 5} more" if len(unfit) > 5 else ""
    remedies = ["leave them out with --drop"]
    if rank is None and any("--rank" in reason for reason in unfit.values()):
        remedies.insert(0, "give --rank for those of full rank")
    return CompatibilityError(
        f"{skill.path}: {len(unfit)} of {len(skill.names)} tensors, {share:.1%} of the skill's norm, don't fit into a "
        f"LoRA adapter: {first_reasons}{more}; {' or '.join(remedies)}, or inject the skill instead"
    )


def _share(skill: Skill, names: Mapping[str, Any]) -> float:
    whole = skill.manifest.norm
    return root_of_squares(skill.norm(name) for name in names) / whole if whole else 0.0


def _specs(skill: Skill, module: _Module, rank: int, scale: float) -> tuple[TensorSpec, TensorSpec]:
    entry = skill.entry(module.name)
    unchanged = entry.form == LOWRANK and entry.rank == module.rank and scale == 1
    prefix = f"base_model.model.{module.in_memory.removesuffix('.weight')}"
    return (
        TensorSpec(f"{prefix}.lora_A.weight", entry.dtype if unchanged else "F32", (rank, entry.shape[1])),
        TensorSpec(f"{prefix}.lora_B.weight", entry.dtype if unchanged else "F32", (entry.shape[0], rank)),
    )


def _factors(skill: Skill, module: _Module) -> tuple[Tensor, Tensor, float]:
    """Return a, b and the norm of what they lack of the delta."""
    entry = skill.entry(module.name)
    if entry.rank == module.rank:
        a, b = skill.factors(module.name) if entry.form == LOWRANK else skill.product(module.name)
        squared = ((a.double() @ a.double().T) * (b.double().T @ b.double())).sum().clamp(min=0)  # ‖B·A‖²
        _check_norm(skill, module.name, squared.sqrt().item())
        return a, b, 0.0
    delta = skill.delta(module.name).double()
    _check_norm(skill, module.name, delta.norm().item())
    a, b = best_factors(delta, module.rank)
    return a, b, (delta - b.double() @ a.double()).norm().item()


def _check_norm(skill: Skill, name: str, norm: float) -> None:
    expected = skill.norm(name)
    # "not <=" rather than ">": NaN must not pass.
    if not abs(norm - expected) <= NORM_TOLERANCE * expected:
        raise CheckpointError(
            f"{skill.path}: the delta of {name!r} has norm {norm:.6g}, expected {expected:.6g} from skill.json; the "
            "skill is damaged: extract or download it again"
        )


def _padded(factor: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(factor.shape) == shape:
        return factor.contiguous()
    padded = torch.zeros(shape, dtype=factor.dtype)
    padded[: factor.shape[0], : factor.shape[1]] = factor
    return padded


def _config(skill: Skill, modules: list[_Module], largest: int, pad: bool, base_model: str | None) -> dict[str, Any]:
    from peft import LoraConfig, TaskType

    other = {} if pad else {m.in_memory.removesuffix(".weight"): m.rank for m in modules if m.rank != largest}
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base_model or skill.manifest.base.id,
        inference_mode=True,
        r=largest,
        lora_alpha=largest,
        target_modules=[module.in_memory.removesuffix(".weight") for module in modules],
        rank_pattern=other,
        alpha_pattern=dict(other),
    ).to_dict()
    return {
        key: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for key, value in sorted(config.items())
    }


def _report(
    skill: Skill,
    modules: list[_Module],
    largest: int,
    lost: Mapping[str, float],
    unfit: Mapping[str, str],
    scale: float,
    pad: bool,
) -> dict[str, Any]:
    whole = by_kind({name: skill.norm(name) for name in skill.names})
    missing = by_kind(lost)
    error_by_kind = {
        kind: root_of_squares(missing.get(kind, ())) / root_of_squares(norms) if any(norms) else 0.0
        for kind, norms in whole.items()
    }
    total = skill.manifest.norm
    remarks = []
    if unfit:
        remarks.append(f"{len(unfit)} tensors were left out, {_share(skill, unfit):.1%} of the skill's norm")
    if largest > VLLM_RANKS[-1]:
        remarks.append(f"vLLM refuses rank {largest}: at most {VLLM_RANKS[-1]}; bound it with --rank")
    elif largest > VLLM_DEFAULT_RANK:
        least = next(rank for rank in VLLM_RANKS if rank >= largest)
        remarks.append(f"vLLM needs --max-lora-rank {least} (its default is {VLLM_DEFAULT_RANK})")
    if head := next((module.name for module in modules if module_kind(module.name) == "head"), None):
        remarks.append(f"{head} is adapted, which not every server supports")
    if not pad and len({module.rank for module in modules}) > 1:
        remarks.append("modules differ in rank (rank_pattern); --pad gives all the same rank")
    return {
        "modules": len(modules),
        "rank": largest,
        "scale": scale,
        "exact": not unfit and all(module.exact for module in modules),
        "error": root_of_squares(lost.values()) / total if total else 0.0,
        "error_by_kind": error_by_kind,
        "dropped": {name: skill.norm(name) for name in unfit},
        "remarks": remarks,
    }
