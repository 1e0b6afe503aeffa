"""Where the numbers of a merge come from: a stored tensor, or the product of a delta's low-rank factors.

A leaf gives the bytes of any part of its tensor. The plan is made of leaves, from headers alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skillgraft.arithmetic import kernels
from skillgraft.arithmetic.methods.copa import copa
from skillgraft.arithmetic.scratch import Files
from skillgraft.checkpoint.header import DTYPE_BYTES, TensorInfo


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
        """How many elements it has."""
        return self.info.elements

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""
        return self.info.end - self.info.begin

    @property
    def files(self) -> tuple[TensorInfo, ...]:
        """What it is read from."""
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
        """How many elements the product has."""
        return self.b.shape[0] * self.a.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""
        return self.a.end - self.a.begin + self.b.end - self.b.begin

    @property
    def files(self) -> tuple[TensorInfo, ...]:
        """What it is read from."""
        return (self.a, self.b)

    def read(self, start: int, stop: int, files: Files, raw: np.ndarray) -> None:
        """Write the bytes of the flat elements from `start` to `stop` to the beginning of `raw` (uint8)."""
        a, b = files.kept(self, lambda: (_wide(self.a, files), _wide(self.b, files) * self.scaling))
        kernels.product_tile(a, b, start, stop, raw[: (stop - start) * 8].view(np.float64))


@dataclass(frozen=True)
class MergedProduct:
    """The product of the factors that CoPA-Merging makes of several low-rank deltas of one tensor."""

    parts: tuple[Product, ...]
    weights: tuple[float, ...]
    density: float
    clamp: float
    coefficient: float

    @property
    def dtype(self) -> str:
        """The safetensors code of its elements."""
        return "F64"

    @property
    def elements(self) -> int:
        """How many elements the product has."""
        return self.parts[0].elements

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""
        return sum(part.nbytes for part in self.parts)

    @property
    def files(self) -> tuple[TensorInfo, ...]:
        """What it is read from."""
        return tuple(info for part in self.parts for info in part.files)

    def read(self, start: int, stop: int, files: Files, raw: np.ndarray) -> None:
        """Write the bytes of the flat elements from `start` to `stop` to the beginning of `raw` (uint8)."""
        a, b = files.kept(self, lambda: self._merge(files))
        kernels.product_tile(a, b, start, stop, raw[: (stop - start) * 8].view(np.float64))

    def _merge(self, files: Files) -> tuple[np.ndarray, np.ndarray]:
        factors = [(_wide(part.a, files), _wide(part.b, files) * part.scaling) for part in self.parts]
        return copa(factors, self.weights, self.density, self.clamp, self.coefficient)


Leaf = Stored | Product | MergedProduct


def _wide(info: TensorInfo, files: Files) -> np.ndarray:
    """Return a whole tensor in fp64."""
    raw = np.empty((1, info.end - info.begin), dtype=np.uint8)
    files.read(info, 0, raw[0])
    out = np.empty(info.elements)
    codes, places = np.array([kernels.CODES[info.dtype]]), np.zeros(1, dtype=np.int64)
    kernels.values_tile(raw, codes, info.elements, 0, 1, places, np.ones(1), kernels.HALF_VALUES, out)
    return out.reshape(info.shape)
