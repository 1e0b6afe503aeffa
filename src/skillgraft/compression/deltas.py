"""Deltas of a skill in fp32, as merging would see them, and their order statistics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.statistics.thresholds import MagnitudeSearch
from skillgraft.arithmetic.tensor_sources import TensorSource, source_of
from skillgraft.arithmetic.tiles import cut
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.checkpoint.tensor_io import numpy_dtype
from skillgraft.compression.factors import Svd, product_svd, squared_spectrum, truncated_svd
from skillgraft.errors import CompatibilityError
from skillgraft.skills.forms import stored_names
from skillgraft.skills.skill import Skill
from skillgraft.support import resources

if TYPE_CHECKING:
    from jaxtyping import Float, Float32

DECODED_BYTES = 8
"""Bytes that packing takes at least for each element of a decoded delta: in fp32, and what is stored of it."""


def check_memory(skill: Skill, names: Iterable[str]) -> None:
    """Raise `CompatibilityError` for a delta that this machine cannot hold decoded, before anything is computed."""
    free = resources.memory().available
    for name in names:
        needed = DECODED_BYTES * skill.entry(name).elements
        if free is not None and needed > free:
            raise CompatibilityError(
                f"{skill.path}: the delta of {name!r} of shape {list(skill.shape(name))} takes at least "
                f"{needed / 2**30:.3g} GiB of memory to be packed again, {free / 2**30:.3g} GiB are available; leave "
                "it in the form that it has, or use a machine with more"
            )


def read_delta(skill: Skill, name: str, files: Files, scratch: Buffers | None = None) -> Float32[Tensor, "*shape"]:
    """Return a parameter's delta in fp32, in `scratch` where given; of factors the fp64 product, rounded once.

    Raises `CompatibilityError`, naming the tensor, for NaN or infinity and as `check_memory` does.
    """
    check_memory(skill, (name,))
    flat, leaf = (scratch or Buffers()).empty("delta", (skill.entry(name).elements,), np.float32), _leaf(skill, name)
    if leaf.dtype == "F32":
        leaf.read(0, len(flat), files, flat.view(np.uint8))
    else:
        for start, values in _tiles(leaf, files):
            with np.errstate(over="ignore"):  # raised below, with the tensor's name
                flat[start : start + len(values)] = values
    if not np.isfinite(flat).all():
        raise _not_finite(skill, name)
    return torch.from_numpy(flat).reshape(skill.shape(name))


def decompose(
    skill: Skill, name: str, rank: int, files: Files, scratch: Buffers
) -> tuple[Svd, Float32[Tensor, "rows columns"]]:
    """Return the leading `rank` directions of a matrix's delta, or all that it has, and, in `scratch`, the delta."""
    with _decomposing(skill, name):
        if skill.entry(name).rank is not None:
            svd = product_svd(*_finite_product(skill, name)).leading(rank)
            return svd, read_delta(skill, name, files, scratch)
        delta = read_delta(skill, name, files, scratch)
        return truncated_svd(delta, rank, scratch), delta


def energies_of(skill: Skill, name: str, files: Files) -> Float[np.ndarray, " side"]:
    """Return the squared singular values of a matrix's delta in fp64, the largest first."""
    with _decomposing(skill, name):
        if skill.entry(name).rank is not None:
            return np.square(product_svd(*_finite_product(skill, name)).s.numpy())
        return squared_spectrum(read_delta(skill, name, files)).numpy()


def largest_threshold(skill: Skill, density: float, files: Files) -> float:
    """Return the magnitude, an fp32 number, of the last of the ⌊density · n⌋ largest elements of the whole vector.

    Counted by streaming, so that nothing is sorted and no tensor is held; never 0, since zeros need no keeping.
    """
    wanted = max(1, math.floor(density * sum(skill.entry(name).elements for name in skill.names)))
    count = MagnitudeSearch(wanted)
    while count.key is None:
        for name in skill.names:
            for _, values in _tiles(_leaf(skill, name), files):
                exact = values.astype(np.float32).astype(np.float64)
                count.add(exact, np.empty(len(values), dtype=np.int32))
        count.close_round()
    return max(float(np.array([count.key], dtype=np.int32).view(np.float32)[0]), float(np.finfo(np.float32).tiny))


@contextmanager
def _decomposing(skill: Skill, name: str) -> Iterator[None]:
    try:
        yield
    except torch.linalg.LinAlgError as error:
        raise CompatibilityError(
            f"{skill.path}: the delta of {name!r} cannot be decomposed: {error}; its numbers are too large for that: "
            "pack it dense, sparse or as a mask"
        ) from error


def _finite_product(skill: Skill, name: str) -> tuple[Tensor, Tensor]:
    factors = skill.product(name)
    if not all(bool(torch.isfinite(factor).all()) for factor in factors):
        raise _not_finite(skill, name)
    return factors


def _not_finite(skill: Skill, name: str) -> CompatibilityError:
    return CompatibilityError(
        f"{skill.path}: the delta of {name!r} holds NaN or infinity; expected finite numbers: the skill is damaged"
    )


def _leaf(skill: Skill, name: str) -> TensorSource:
    entry = skill.entry(name)
    return source_of(name, entry, [skill.stored[key] for key in stored_names(name, entry.form)])


def _tiles(leaf: TensorSource, files: Files) -> Iterator[tuple[int, Float[np.ndarray, " count"]]]:
    """Yield the position and values of every tile, in a dtype that holds them exactly."""
    for start, stop in cut(leaf.elements):
        raw = np.empty((stop - start) * DTYPE_BYTES[leaf.dtype], dtype=np.uint8)
        leaf.read(start, stop, files, raw)
        values = raw.view(numpy_dtype(leaf.dtype))
        yield start, (values.astype(np.uint32) << 16).view(np.float32) if leaf.dtype == "BF16" else values
