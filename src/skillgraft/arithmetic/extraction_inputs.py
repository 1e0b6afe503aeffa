"""Inputs of an extraction, the SFT and the RL model: read, matched and checked from headers alone."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from skillgraft.adapters import read_adapter
from skillgraft.adapters.peft_file import LowRankDelta, PeftAdapter, adapter_base, is_adapter
from skillgraft.arithmetic.matching import check_adapter_fits, check_pair, check_tokenizers, without_tied_copy
from skillgraft.arithmetic.norms import frobenius_norm
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.layout import CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, Layout, read_layout, require_directory
from skillgraft.checkpoint.provenance import base_of, read_provenance
from skillgraft.checkpoint.tensor_io import read_tensor, torch_dtype
from skillgraft.checkpoint.tokenizer import TOKENIZER_FILE
from skillgraft.errors import CheckpointError, CompatibilityError
from skillgraft.skills.forms import decode_lowrank, encode_lowrank
from skillgraft.skills.manifest import BaseReference

ADAPTER_FOLDER = "adapter"
# How far a merged checkpoint may lie from SFT + adapter, relative to the delta: PEFT multiplies in the factors' dtype.
MERGE_TOLERANCE = 0.02


@dataclass(frozen=True)
class ExtractionInputs:
    """The SFT checkpoint and the RL model: a full checkpoint (`rl`), a LoRA adapter on the SFT model, or both.

    `remarks` say what is odd about the two and no mistake.
    """

    sft: Layout
    sft_fingerprint: str
    rl: Layout | None
    rl_fingerprint: str
    rl_path: Path
    adapter: PeftAdapter | None
    remarks: tuple[str, ...] = ()


def match_inputs(rl: str | os.PathLike[str], sft: str | os.PathLike[str]) -> ExtractionInputs:
    """Return the checked inputs of θ_RL − θ_SFT.

    `rl` is a full checkpoint, one with the LoRA adapter of its training in `adapter/`, or an adapter directory. The
    adapter counts when it was trained on `sft`; with a checkpoint whose provenance names another start (as in
    iterative refinement, where RL starts at θ_SFT + v), or with an adapter that is no plain LoRA, the full weights are
    subtracted instead.

    Raises `MissingPathError`, `CheckpointError` (see `read_layout`, `read_adapter`) and `CompatibilityError` for
    inputs that differ in names, shapes, tokenizer, head counts, RoPE or ties.
    """
    rl_path = require_directory(rl)
    sft_layout = read_layout(sft)
    sft_fingerprint = fingerprint_checkpoint(sft)
    has_weights = (rl_path / WEIGHTS_FILE).is_file() or (rl_path / INDEX_FILE).is_file()
    if is_adapter(rl_path) and has_weights:
        raise CheckpointError(
            f"{rl_path} holds both a full checkpoint and an adapter; expected one: move the adapter into "
            f"{ADAPTER_FOLDER}/ or away"
        )
    adapter_path = rl_path if is_adapter(rl_path) else rl_path / ADAPTER_FOLDER
    rl_layout = None
    if has_weights or not is_adapter(adapter_path):
        rl_layout = without_tied_copy(read_layout(rl_path), sft_layout)
        sft_layout = without_tied_copy(sft_layout, rl_layout)
        check_pair(rl_layout, sft_layout)
    elif (rl_path / TOKENIZER_FILE).is_file():
        check_tokenizers(rl_path, sft_layout.path)
    adapter: PeftAdapter | None = None
    remarks: list[str] = []
    if is_adapter(adapter_path) and _was_trained_on(rl_path, adapter_path, sft_layout, sft_fingerprint, rl_layout):
        adapter, remarks = _usable_adapter(adapter_path, sft_layout, rl_layout)
    if adapter is None and rl_layout is not None:
        remarks += _mixed_precision(sft_layout, rl_layout)
    rl_fingerprint = (
        fingerprint_file(adapter.weights_file)
        if adapter is not None and rl_layout is None
        else fingerprint_checkpoint(rl_path)
    )
    return ExtractionInputs(sft_layout, sft_fingerprint, rl_layout, rl_fingerprint, rl_path, adapter, tuple(remarks))


def base_reference(inputs: ExtractionInputs) -> BaseReference:
    """Return the base that the SFT model's provenance names, else the RL model's, else the SFT model without id."""
    stated = base_of(inputs.sft.path) or base_of(inputs.rl_path)
    if stated is not None and stated["fingerprint"] is not None:
        return BaseReference(id=stated["id"], fingerprint=stated["fingerprint"])
    return BaseReference(id=None, fingerprint=inputs.sft_fingerprint)


def read_factors(delta: LowRankDelta, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stored factors (a, b with the scaling folded in) of an adapter's delta, checked to be finite."""
    a, b = read_tensor(delta.a), read_tensor(delta.b)
    for info, tensor in ((delta.a, a), (delta.b, b)):
        if not torch.isfinite(tensor).all():
            raise CompatibilityError(
                f"{info.file}: tensor {info.name!r} holds NaN or infinity; expected finite factors: training diverged"
            )
    return encode_lowrank(a, b, delta.scaling, dtype)


def verify_adapter(inputs: ExtractionInputs) -> None:
    """Raise `CompatibilityError` unless SFT + adapter gives the RL checkpoint's weights, up to its rounding.

    Per tensor: ‖θ_RL − θ_SFT − Δ‖ ≤ 0.02·‖Δ‖ + ε·‖θ_SFT‖ with ε of the coarser stored dtype; Δ = 0 where the adapter
    changes nothing. Guards against a stale `adapter/` beside the weights.
    """
    if inputs.adapter is None or inputs.rl is None:
        return
    for name, info in inputs.sft.tensors.items():
        sft, rl = inputs.sft.read(name), inputs.rl.read(name)
        if not info.is_float:
            check_equal_integers(name, rl, sft, inputs.rl_path)
            continue
        delta = inputs.adapter.deltas.get(name)
        change = rl.float() - sft.float()
        allowed = max(torch.finfo(torch_dtype(code)).eps for code in (info.dtype, inputs.rl.tensors[name].dtype))
        allowed *= frobenius_norm(sft)
        if delta is not None:
            expected = decode_lowrank(*read_factors(delta, torch.float32))
            allowed += MERGE_TOLERANCE * frobenius_norm(expected)
            change -= expected
        # "not <=" rather than ">": NaN in either model must not pass.
        if not frobenius_norm(change) <= allowed:
            raise CompatibilityError(
                f"{inputs.adapter.path} does not explain tensor {name!r}: RL − SFT − adapter has norm "
                f"{frobenius_norm(change):.3g}, expected at most {allowed:.3g}; the adapter or "
                f"{inputs.sft.path} does not belong to this RL checkpoint: take the right SFT model, or delete the "
                "adapter folder to subtract the full weights"
            )


def check_equal_integers(name: str, rl: torch.Tensor, sft: torch.Tensor, rl_path: Path) -> None:
    """Raise `CompatibilityError` when a tensor without arithmetic (integers, booleans) differs between the inputs."""
    if not torch.equal(rl, sft):
        raise CompatibilityError(
            f"{rl_path}: tensor {name!r} is {rl.dtype} and differs from the SFT model's; expected equal integers: a "
            "difference of them means nothing"
        )


def _was_trained_on(
    rl_path: Path, adapter_path: Path, sft: Layout, sft_fingerprint: str, rl_layout: Layout | None
) -> bool:
    """Return whether the adapter is relative to `sft`, as far as provenance or the adapter's config tell."""
    provenance = read_provenance(rl_path)
    if provenance is not None and provenance.get("inputs"):
        known, same = "its provenance", sft_fingerprint in provenance["inputs"].values()
    else:
        start = adapter_base(adapter_path)
        if start is None or not (Path(start) / CONFIG_FILE).is_file():
            return True
        known, same = f"its base_model_name_or_path {start}", fingerprint_checkpoint(start) == sft_fingerprint
    if not same and rl_layout is None:
        raise CompatibilityError(
            f"{adapter_path} was trained on another model than {sft.path}, by {known}; expected an adapter on this SFT "
            "model: give the model that it was trained on as sft"
        )
    return same


def _usable_adapter(path: Path, sft: Layout, rl: Layout | None) -> tuple[PeftAdapter | None, list[str]]:
    """Return the adapter; None and why where it is no plain LoRA and the full weights are there to be subtracted."""
    try:
        adapter = read_adapter(path, sft)
        check_adapter_fits(adapter, sft)
    except CompatibilityError as error:
        if rl is None:
            raise
        # v is defined by the weights; the adapter would only have been its compact form.
        return None, [f"stored by its weights, not as the factors that RL trained: {str(error)[:800]}"]
    return adapter, []


def _mixed_precision(sft: Layout, rl: Layout) -> list[str]:
    """Return a remark where tensors of the two models are stored in different dtypes: v then holds a rounding."""
    pairs = [(info.dtype, rl.tensors[name].dtype) for name, info in sft.tensors.items() if info.is_float]
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    if not differing:
        return []
    (before, after), _ = Counter(differing).most_common(1)[0]
    return [
        f"{len(differing)} of {len(pairs)} tensors are {before} in the SFT model and {after} in the RL model, so that "
        "the vector holds their rounding too, also of tensors that training did not change; save both models in one "
        "dtype (best float32) and extract again"
    ]
