"""One tensor in its chosen form: what is stored, its manifest entry, and what was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.norms import (
    frobenius_norm,
    product_error,
    product_norm,
    sum_of_squared_differences,
    sum_of_squares,
)
from skillgraft.checkpoint.tensor_io import read_array, tensor_bytes, torch_dtype
from skillgraft.compression.choices import HALF, Choice
from skillgraft.compression.deltas import decompose, read_delta
from skillgraft.errors import CompatibilityError
from skillgraft.skills.contents import content_problem
from skillgraft.skills.forms import packed, sparse, stored_names
from skillgraft.skills.forms.plain import encode_dense, encode_lowrank
from skillgraft.skills.manifest import TensorEntry
from skillgraft.skills.skill import Skill

if TYPE_CHECKING:
    from jaxtyping import Bool, Float32

HALF_ERROR = 1e-3
"""The relative error up to which F16 is taken without a look at BF16; among its normal numbers it is below 5e-4."""


class Encoded(NamedTuple):
    """One encoded tensor: bytes in the order of `stored_names`, no entry if nothing is left; squared norms."""

    entry: TensorEntry | None
    data: Sequence[memoryview]
    exact: float
    lost: float


def encode(skill: Skill, name: str, choice: Choice, files: Files, scratch: Buffers) -> Encoded:
    """Return a parameter's delta in the form chosen. Raises `CompatibilityError` where a dtype cannot hold it."""
    old = skill.entry(name)
    if choice.form == "keep":
        return _kept(skill, name)
    if choice.form == "leave":
        return Encoded(None, (), old.norm**2, old.norm**2)
    if choice.form in ("lowrank", "packed"):
        return _factored(skill, name, choice, files, scratch)
    delta = read_delta(skill, name, files)
    if choice.form == "dense":
        code = _code(choice, delta)
        (stored,) = encode_dense(delta, torch_dtype(code))
        _check_finite(stored, name, code)
        facts = {"form": "dense", "dtype": code, "norm": frobenius_norm(stored)}
        return _finished(old, facts, [tensor_bytes(stored)], delta, sum_of_squared_differences(stored, delta))
    encoded = _sparse(old, name, choice, delta)
    lossless, before = choice.threshold == 0 and choice.mask is None, sum(spec.nbytes for spec in old.specs(name))
    return _kept(skill, name) if lossless and sum(map(len, encoded.data)) >= before else encoded


def _kept(skill: Skill, name: str) -> Encoded:
    """Return a delta as it is stored. Raises `CompatibilityError` for numbers that no merge would take."""
    if (problem := content_problem(skill, name)) is not None:
        raise CompatibilityError(f"{skill.path}: {problem}; expected finite numbers: the skill is damaged")
    old = skill.entry(name)
    entry = old.model_copy(update={"reconstruction_error": 0.0})
    data = [array_bytes(read_array(skill.stored[key])) for key in stored_names(name, old.form)]
    return Encoded(entry, data, old.norm**2, 0.0)


def _sparse(old: TensorEntry, name: str, choice: Choice, delta: Float32[Tensor, "*shape"]) -> Encoded:
    flat = delta.numpy().reshape(-1)
    # Lossless is what has other bits than +0: a −0 is kept.
    if choice.mask is not None:
        mask = choice.mask.reshape(-1) & (flat != 0)
    else:
        mask = _at_least(flat, choice.threshold) if choice.threshold > 0 else flat.view(np.uint32) != 0
    if not mask.any():
        norm = frobenius_norm(delta)
        return Encoded(None, (), norm**2, norm**2)
    values = flat[mask]
    code = _code(choice, torch.from_numpy(values)) if choice.dtype else narrowest(values)
    stored = torch.from_numpy(np.where(mask, flat, np.float32(0))).to(torch_dtype(code))
    _check_finite(stored, name, code)
    encoded = sparse.encode_sparse(stored.view(torch.int16).numpy() if code == "BF16" else stored.numpy(), mask)
    facts = {"form": "sparse", "dtype": code, "count": len(encoded.values), "coding": encoded.coding}
    data = [array_bytes(array) for array in (encoded.offsets, encoded.index, encoded.values)]
    facts["norm"] = frobenius_norm(stored)
    return _finished(old, facts, data, delta, sum_of_squared_differences(stored, delta))


def _factored(skill: Skill, name: str, choice: Choice, files: Files, scratch: Buffers) -> Encoded:
    old = skill.entry(name)
    rank = choice.rank if choice.form == "lowrank" else sum(choice.bits.values())
    svd, exact = decompose(skill, name, rank, files, scratch)
    a, b = svd.balanced()
    facts: dict[str, object]
    if choice.form == "lowrank":
        code = _code(choice, a, b)
        stored = encode_lowrank(a, b, 1.0, torch_dtype(code))
        for factor in stored:
            _check_finite(factor, name, code)
        facts, data = {"form": "lowrank", "rank": len(a), "dtype": code}, [tensor_bytes(factor) for factor in stored]
        a, b = stored[0].float(), stored[1].float()
    else:
        quantised = packed.encode_packed(a.double().numpy(), b.double().numpy(), choice.bits)
        arrays = (quantised.a, quantised.b, quantised.a_scales, quantised.b_scales)
        widths = {str(width): choice.bits[width] for width in packed.WIDTHS if choice.bits.get(width)}
        facts = {"form": "packed", "rank": len(a), "dtype": "BF16", "bits": widths}
        data = [array_bytes(array) for array in arrays]
        back = packed.decode_packed(quantised, (old.shape[0], old.shape[1]), choice.bits)
        a, b = torch.from_numpy(back[0]), torch.from_numpy(back[1])
    facts["norm"] = product_norm(a, b)
    if facts["norm"] == 0:
        return Encoded(None, (), old.norm**2, old.norm**2)
    return _finished(old, facts, data, exact, product_error(a, b, exact))


def array_bytes(array: np.ndarray) -> memoryview:
    """Return the bytes of an array in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def narrowest(values: Float32[np.ndarray, " count"]) -> str:
    """Return the code of the narrowest dtype that holds every value bit for bit."""
    bits = values.view(np.uint32)
    if not (bits & 0xFFFF).any():
        return "BF16"
    with np.errstate(over="ignore"):
        back = values.astype(np.float16).astype(np.float32)
    return "F16" if np.array_equal(back.view(np.uint32), bits) else "F32"


def half(*tensors: Tensor) -> str:
    """Return F16, or BF16 where F16 loses over `HALF_ERROR` of a tensor and BF16 less.

    F16 has no more than multiples of 6e-8 below 6e-5, and nothing above 65504.
    """

    def worst(code: str) -> float:
        errors = (sum_of_squared_differences(t.to(torch_dtype(code)), t) / (sum_of_squares(t) or 1.0) for t in tensors)
        return max(errors) ** 0.5

    tensors = tuple(tensor.float() for tensor in tensors)
    least = worst("F16")
    return "F16" if least <= HALF_ERROR or least <= worst("BF16") else "BF16"


def _code(choice: Choice, *tensors: Tensor) -> str:
    return half(*tensors) if choice.dtype == HALF else choice.dtype or "F32"


def _at_least(flat: Float32[np.ndarray, " count"], threshold: float) -> Bool[np.ndarray, " count"]:
    """Return where |x| ≥ threshold, without a copy of the numbers."""
    mask = flat >= threshold
    mask |= flat <= -threshold
    return mask


def _finished(
    old: TensorEntry, facts: dict[str, object], data: Sequence[memoryview], exact: Tensor, lost: float
) -> Encoded:
    whole = sum_of_squares(exact)
    error = (lost / whole) ** 0.5 if whole else 0.0
    entry = TensorEntry.model_validate({**facts, "shape": old.shape, "reconstruction_error": error})
    return Encoded(entry, data, whole, lost)


def _check_finite(stored: Tensor, name: str, code: str) -> None:
    if not torch.isfinite(stored).all():
        raise CompatibilityError(f"the delta of {name!r} overflows {code}; choose --dtype bfloat16 or float32")
