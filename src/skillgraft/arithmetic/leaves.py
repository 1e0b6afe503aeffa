"""Where the numbers of a merge come from: a stored tensor, or the product of a delta's low-rank factors.

A leaf gives any part of its tensor in fp64. The plan is made of leaves, from headers alone; nothing is read before.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from skillgraft.arithmetic.scratch import Files, Scratch
from skillgraft.checkpoint.header import DTYPE_BYTES, TensorInfo
from skillgraft.checkpoint.tensor_io import read_tensor, torch_dtype

ROW_BLOCK = 16
"""Rows of a low-rank product that are multiplied at a time: always the same calls, hence always the same bits."""


@dataclass(frozen=True)
class Stored:
    """The elements of a stored tensor; it may have fewer rows than the target (a vocabulary without padding)."""

    info: TensorInfo

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return self.info.elements

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""
        return self.info.end - self.info.begin

    def read(
        self, start: int, stop: int, key: Hashable, scratch: Scratch, files: Files
    ) -> Float[Tensor, " stop-start"]:
        """Return the flat elements from `start` to `stop` in fp64, in the buffer `key` of `scratch`."""
        width = DTYPE_BYTES[self.info.dtype]
        raw = scratch.empty("raw", stop - start, torch_dtype(self.info.dtype), _CPU)
        files.read(self.info, start * width, memoryview(raw.view(torch.uint8).numpy()))
        return scratch.from_host(key, raw)


@dataclass(frozen=True)
class Product:
    """The elements of `scaling · b @ a`, a (rank, in) and b (out, rank), multiplied in fp64 as they are needed."""

    a: TensorInfo
    b: TensorInfo
    scaling: float = 1.0

    @property
    def elements(self) -> int:
        """How many elements the product has."""
        return self.b.shape[0] * self.a.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that are read from the disk for all of it."""
        return self.a.end - self.a.begin + self.b.end - self.b.begin

    def read(
        self, start: int, stop: int, key: Hashable, scratch: Scratch, files: Files
    ) -> Float[Tensor, " stop-start"]:
        """Return the flat elements from `start` to `stop` in fp64, in the buffer `key` of `scratch`."""
        columns = self.a.shape[1]
        a, b = files.kept((self, scratch.device), lambda: _factors(self, scratch.device))
        out = scratch.empty(key, stop - start, torch.float64)
        first, last = start // columns // ROW_BLOCK, -(-stop // columns)
        for row in range(first * ROW_BLOCK, last, ROW_BLOCK):
            rows = b[row : row + ROW_BLOCK]
            block = torch.mm(
                rows, a, out=scratch.empty("block", len(rows) * columns, torch.float64).view(-1, columns)
            ).view(-1)
            begin, end = max(start, row * columns), min(stop, (row + len(rows)) * columns)
            out[begin - start : end - start].copy_(block[begin - row * columns : end - row * columns])
        return out


Leaf = Stored | Product

_CPU = torch.device("cpu")


def _factors(leaf: Product, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return both factors in fp64, the scaling in b."""
    return read_tensor(leaf.a).to(device).double(), read_tensor(leaf.b).to(device).double() * leaf.scaling
