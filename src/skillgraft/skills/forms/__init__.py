"""Storage forms of one parameter's delta: for each, the stored tensors and pure functions to them and back.

`dense` and `lowrank` are Torch functions (`plain`), `sparse` and `packed` NumPy ones, which merging uses as they are.
A further form is a pair of functions, one entry in `FORMS` and its shapes in `stored_specs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from skillgraft.checkpoint.header import TensorSpec
from skillgraft.skills.forms import packed, sparse
from skillgraft.skills.forms.plain import decode_dense, decode_lowrank, encode_dense, encode_lowrank

__all__ = [
    "DENSE",
    "FORMS",
    "LOWRANK",
    "PACKED",
    "SPARSE",
    "Storage",
    "decode_dense",
    "decode_lowrank",
    "encode_dense",
    "encode_lowrank",
    "stored_names",
    "stored_specs",
]

DENSE = "dense"
LOWRANK = "lowrank"
SPARSE = "sparse"
PACKED = "packed"

FORMS: dict[str, tuple[str, ...]] = {
    DENSE: ("",),
    LOWRANK: (".lowrank_a", ".lowrank_b"),
    SPARSE: (".sparse_offsets", ".sparse_index", ".sparse_values"),
    PACKED: (".packed_a", ".packed_b", ".packed_a_scales", ".packed_b_scales"),
}
"""The forms, and the suffixes of the names under which their tensors are stored."""


@dataclass(frozen=True)
class Storage:
    """Storage of a delta of `shape`: `dtype` is that of its numbers (packed: of its scales).

    `rank` with `lowrank` and `packed`; `bits` (directions by width) with `packed`; `count` and `coding` with `sparse`.
    """

    form: str
    shape: tuple[int, ...]
    dtype: str
    rank: int | None = None
    count: int | None = None
    coding: sparse.Coding | None = None
    bits: Mapping[int, int] | None = None


def stored_names(name: str, form: str) -> tuple[str, ...]:
    """Return the names in `skill.safetensors` that hold the delta of the parameter `name`."""
    return tuple(name + suffix for suffix in FORMS[form])


def stored_specs(name: str, storage: Storage) -> tuple[TensorSpec, ...]:
    """Return name, dtype and shape of the tensors that hold the delta of the parameter `name`."""
    return tuple(
        TensorSpec(key, dtype, shape)
        for key, (dtype, shape) in zip(stored_names(name, storage.form), _layout(storage), strict=True)
    )


def _layout(storage: Storage) -> tuple[tuple[str, tuple[int, ...]], ...]:
    shape, dtype, rank = storage.shape, storage.dtype, storage.rank
    if storage.form == SPARSE and storage.count is not None and storage.coding is not None:
        elements = 1
        for extent in shape:
            elements *= extent
        length = sparse.index_length(storage.coding, elements, storage.count)
        return (
            ("I64", (sparse.blocks(elements) + 1,)),
            ("U16" if storage.coding == "places" else "U8", (length,)),
            (dtype, (storage.count,)),
        )
    if storage.form == LOWRANK and rank is not None:
        return (dtype, (rank, shape[1])), (dtype, (shape[0], rank))
    if storage.form == PACKED and rank is not None and storage.bits is not None:
        return (
            ("U8", (packed.factor_bytes(shape[1], storage.bits),)),
            ("U8", (packed.factor_bytes(shape[0], storage.bits),)),
            (dtype, (rank, packed.groups(shape[1]))),
            (dtype, (rank, packed.groups(shape[0]))),
        )
    return ((dtype, shape),)
