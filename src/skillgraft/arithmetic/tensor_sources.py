"""Tensor sources: where the numbers of a merge come from, a stored tensor or a delta in a skill's storage form.

A source gives the bytes of any part of its tensor. The plan is made of sources, from headers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from skillgraft.arithmetic.buffers import Files
from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.kernels.codes import CODES
from skillgraft.checkpoint.header import DTYPE_BYTES, TensorInfo
from skillgraft.checkpoint.tensor_io import numpy_dtype
from skillgraft.skills.forms import DENSE, LOWRANK, PACKED, packed, sparse
from skillgraft.skills.manifest import TensorEntry
from skillgraft.skills.skill import damaged


class TensorSource(Protocol):
    """Elements of one tensor, read piece by piece; hashable, and equal where the elements are."""

    @property
    def dtype(self) -> str:
        """The safetensors code of its elements."""

    @property
    def elements(self) -> int:
        """The number of elements."""

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""

    @property
    def files(self) -> tuple[TensorInfo, ...]:
        """The stored tensors that it is read from."""

    def read(self, start: int, stop: int, files: Files, raw: np.ndarray) -> None:
        """Write the bytes of the flat elements from `start` to `stop` to the beginning of `raw` (uint8)."""


@dataclass(frozen=True)
class Stored:
    """The elements of a stored tensor; it may have fewer rows than the target (a vocabulary without padding)."""

    info: TensorInfo

    @property
    def dtype(self) -> str:
        """The safetensors code of its elements."""
        return self.info.dtype

    @property
    def elements(self) -> int:
        """The number of elements."""
        return self.info.elements

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""
        return self.info.end - self.info.begin

    @property
    def files(self) -> tuple[TensorInfo, ...]:
        """The stored tensors that it is read from."""
        return (self.info,)

    def read(self, start: int, stop: int, files: Files, raw: np.ndarray) -> None:
        """Write the bytes of the flat elements from `start` to `stop` to the beginning of `raw` (uint8)."""
        width = DTYPE_BYTES[self.dtype]
        files.read(self.info, start * width, raw[: (stop - start) * width])


@dataclass(frozen=True)
class Product:
    """The elements of `scaling · b @ a`, a (rank, in) and b (out, rank), multiplied in fp64 as they are needed."""

    a: TensorInfo
    b: TensorInfo
    scaling: float = 1.0

    @property
    def dtype(self) -> str:
        """The safetensors code of its elements."""
        return "F64"

    @property
    def elements(self) -> int:
        """The number of elements of the product."""
        return self.b.shape[0] * self.a.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""
        return self.a.end - self.a.begin + self.b.end - self.b.begin

    @property
    def files(self) -> tuple[TensorInfo, ...]:
        """The stored tensors that it is read from."""
        return (self.a, self.b)

    def read(self, start: int, stop: int, files: Files, raw: np.ndarray) -> None:
        """Write the bytes of the flat elements from `start` to `stop` to the beginning of `raw` (uint8)."""
        read_product(files.cached(self, lambda: self.factors(files)), start, stop, raw)

    def factors(self, files: Files) -> tuple[np.ndarray, np.ndarray]:
        """Return a and scaling · b in fp64."""
        return _wide(self.a, files), _wide(self.b, files) * self.scaling


@dataclass(frozen=True)
class Packed:
    """The elements of `b @ a` with quantised factors: codes and scales of a (rank, in) and of bᵀ (rank, out).

    `widths` are (bits, number of directions), the largest directions first. Decoded exactly, multiplied in fp64.
    """

    name: str
    shape: tuple[int, int]
    widths: tuple[tuple[int, int], ...]
    files: tuple[TensorInfo, ...]

    @property
    def dtype(self) -> str:
        """The safetensors code of its elements."""
        return "F64"

    @property
    def elements(self) -> int:
        """The number of elements of the product."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""
        return sum(info.end - info.begin for info in self.files)

    def read(self, start: int, stop: int, files: Files, raw: np.ndarray) -> None:
        """Write the bytes of the flat elements from `start` to `stop` to the beginning of `raw` (uint8)."""
        read_product(files.cached(self, lambda: self._factors(files)), start, stop, raw)

    def _factors(self, files: Files) -> tuple[np.ndarray, np.ndarray]:
        encoded = packed.Encoded(*(_part(info, 0, info.elements, files).reshape(info.shape) for info in self.files))
        try:
            a, b = packed.decode_packed(encoded, self.shape, dict(self.widths))
        except ValueError as error:
            raise damaged(self.files[0].file.parent, self.name, error) from error
        return a.astype(np.float64), b.astype(np.float64)


@dataclass(frozen=True)
class Sparse:
    """The elements of a sparse delta: its values at their places, else zero. A tile reads the blocks it touches."""

    name: str
    elements: int
    coding: sparse.Coding
    files: tuple[TensorInfo, ...]

    @property
    def dtype(self) -> str:
        """The safetensors code of its elements."""
        return self.files[2].dtype

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""
        return sum(info.end - info.begin for info in self.files)

    def read(self, start: int, stop: int, files: Files, raw: np.ndarray) -> None:
        """Write the bytes of the flat elements from `start` to `stop` to the beginning of `raw` (uint8)."""
        (offsets,) = files.cached(self, lambda: (self._offsets(files),))
        first, last = start // sparse.BLOCK, -(-stop // sparse.BLOCK)
        run = offsets[first : last + 1]
        origin = first * sparse.BLOCK
        end = min(last * sparse.BLOCK, self.elements)
        index = _part(self.files[1], *sparse.index_part(self.coding, offsets, self.elements, first, last), files)
        try:
            places = sparse.positions_of(self.coding, index, run, end - origin)
        except ValueError as error:
            raise damaged(self.files[0].file.parent, self.name, error) from error
        low, high = np.searchsorted(places, (start - origin, stop - origin))
        values = _part(self.files[2], run[0] + low, run[0] + high, files)
        out = raw[: (stop - start) * values.itemsize].view(values.dtype)
        out[:] = 0
        out[places[low:high] - (start - origin)] = values

    def _offsets(self, files: Files) -> np.ndarray:
        offsets = _part(self.files[0], 0, self.files[0].elements, files)
        try:
            sparse.check_offsets(offsets, self.elements, self.files[2].elements)
        except ValueError as error:
            raise damaged(self.files[0].file.parent, self.name, error) from error
        return offsets


def read_product(factors: tuple[np.ndarray, ...], start: int, stop: int, raw: np.ndarray) -> None:
    """Write the flat elements from `start` to `stop` of b @ a, fp64, to the beginning of `raw` (uint8).

    `factors` are a (rank, in) and b (out, rank).
    """
    a, b = factors
    native.product_tile(a, b, start, stop, raw[: (stop - start) * 8].view(np.float64))


def source_of(name: str, entry: TensorEntry, stored: Sequence[TensorInfo]) -> TensorSource:
    """Return the source of a skill's delta; `stored` are the tensors that hold it, in the order of `stored_names`."""
    if entry.form == DENSE:
        return Stored(stored[0])
    if entry.form == LOWRANK:
        return Product(stored[0], stored[1])
    if entry.form == PACKED:
        shape, widths = (entry.shape[0], entry.shape[1]), tuple(entry.widths.items())
        return Packed(name, shape, widths, tuple(stored))
    return Sparse(name, entry.elements, entry.coding or "places", tuple(stored))


def _part(info: TensorInfo, start: int, stop: int, files: Files) -> np.ndarray:
    """Return the flat elements from `start` to `stop` of a tensor, bf16 as its bits."""
    width = DTYPE_BYTES[info.dtype]
    raw = np.empty(int(stop - start) * width, dtype=np.uint8)
    if len(raw):
        files.read(info, int(start) * width, raw)
    return raw.view(numpy_dtype(info.dtype))


def _wide(info: TensorInfo, files: Files) -> np.ndarray:
    """Return a whole tensor in fp64."""
    raw = np.empty((1, info.end - info.begin), dtype=np.uint8)
    files.read(info, 0, raw[0])
    out = np.empty(info.elements)
    codes, places = np.array([CODES[info.dtype]]), np.zeros(1, dtype=np.int64)
    native.values_tile(raw, codes, info.elements, 0, 1, places, np.ones(1), native.HALF_VALUES, out)
    return out.reshape(info.shape)
