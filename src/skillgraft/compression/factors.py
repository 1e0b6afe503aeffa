"""Truncated singular value decompositions.

Of A (m, n) with m ≥ n, the right singular vectors V are wanted. A few are found in the block Krylov space of AᵀA from a
random start (Musco & Musco, arXiv 1504.05477, Algorithm 2), which grows until the energy that it holds stands still;
all, or many, by `eigh` of the Gram matrix AᵀA. The factors then come from A itself: with Q = orth(A·V), by the
decomposition of QᵀA, so that squaring costs no accuracy of what is kept. Departure: the number of blocks follows from
an estimate of what is still missing, not from an error bound. Arithmetic is fp64 where the smaller side is at most
1024, else fp32.

Where the processor multiplies bf16 faster, the space of a large matrix is first that of A rounded to bf16: errors of at
most 2⁻⁹ in every element turn the leading directions little, and cost energy only in their square. That holds while
what is left out is a good part of A; where it is not, the directions found are the start of an iteration in fp32. The
factors come from A in fp32 either way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from skillgraft.arithmetic.buffers import Buffers
from skillgraft.support import resources

if TYPE_CHECKING:
    from jaxtyping import Float

FP64_SIDE = 1024
SMALL_RANK = 24
"""The Krylov space is tried if the smaller side is at least this many times the rank."""

MOST_BLOCKS = 32
MISSING = {torch.bfloat16: 1e-6, torch.float32: 1e-6, torch.float64: 1e-9}
"""The energy still missing that ends the growth, over the energy that is left out.

Half of it would be the excess error, of which the half power iteration that gives the factors takes most away.
"""

NOISE = {torch.bfloat16: 2e-6, torch.float32: 5e-7, torch.float64: 1e-11}
"""The same relative to the energy held: below it, rounding hides any difference."""

ROUNDED_LEAVES = 0.25
"""The share of the energy that must be left out for directions of the rounded matrix to do."""

FIRST_LOOK = 2
"""Blocks before the energy is first computed, which costs the cube of the space's size."""


class Svd(NamedTuple):
    """A ≈ u · diag(s) · vt, the largest singular values first."""

    u: Float[Tensor, "rows rank"]
    s: Float[Tensor, " rank"]
    vt: Float[Tensor, "rank columns"]

    def balanced(self) -> tuple[Float[Tensor, "rank columns"], Float[Tensor, "rows rank"]]:
        """Return factors (a, b) with b @ a = u · diag(s) · vt and rows of equal length."""
        root = self.s.sqrt()
        return root[:, None] * self.vt, self.u * root

    def leading(self, rank: int) -> Svd:
        """Return the first `rank` directions."""
        return Svd(self.u[:, :rank], self.s[:rank], self.vt[:rank])


def squared_spectrum(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, " side"]:
    """Return all squared singular values in fp64, the largest first."""
    return torch.linalg.eigvalsh(_gram(_tall(matrix))).double().clamp(min=0.0).flip(0)


def truncated_svd(matrix: Float[Tensor, "rows columns"], rank: int, scratch: Buffers | None = None) -> Svd:
    """Return the `rank` leading directions (fewer where the matrix has fewer)."""
    tall = _tall(matrix)
    rank = min(rank, tall.shape[1])
    tall = tall.to(_dtype(tall))
    images = _images(tall, rank, scratch or Buffers()) if SMALL_RANK * rank <= tall.shape[1] else None
    if images is None:
        images = (torch.linalg.eigh(_gram(tall))[1][:, -rank:].T.to(tall.dtype) @ tall.T).T
    q = torch.linalg.qr(images)[0]
    u, s, vt = torch.linalg.svd(q.T @ tall, full_matrices=False)
    leading = Svd(q @ u, s, vt).leading(rank)
    return leading if matrix.shape[0] >= matrix.shape[1] else Svd(leading.vt.T, leading.s, leading.u.T)


def product_svd(a: Float[Tensor, "rank columns"], b: Float[Tensor, "rows rank"]) -> Svd:
    """Return the decomposition of b @ a in fp64 without forming the product: of the core between two QR's."""
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T)
    rank = min(len(u), len(vt))
    return Svd(q_b @ u[:, :rank], s[:rank], vt[:rank] @ q_a.T)


def _tall(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def _dtype(tall: Tensor) -> torch.dtype:
    return torch.float64 if tall.shape[1] <= FP64_SIDE else torch.float32


def _gram(tall: Float[Tensor, "rows side"]) -> Float[Tensor, "side side"]:
    """Return AᵀA, added up over blocks of rows."""
    dtype = _dtype(tall)
    total = torch.zeros((tall.shape[1],) * 2, dtype=dtype)
    for block in tall.split(1 << 13):
        block = block.to(dtype)
        total.addmm_(block.T, block)
    return total


def _images(tall: Float[Tensor, "rows side"], rank: int, scratch: Buffers) -> Float[Tensor, "rows rank"] | None:
    """Return A·V for the leading right singular vectors V, None where the Krylov space grew too large."""
    total = float(torch.linalg.vector_norm(tall).double().square())
    if total == 0:
        return tall[:, :rank]
    noise = torch.randn((rank, len(tall)), dtype=tall.dtype, generator=torch.Generator().manual_seed(0))
    if tall.dtype == torch.float32 and fast_bf16():
        rounded, wide = _rounded(tall, scratch)
        start = (wide @ noise.T.to(wide.dtype)).T.to(tall.dtype)
        subspace = _krylov(rounded, wide, start, total, scratch)
        if subspace is None:
            return None
        if total - subspace.held >= ROUNDED_LEAVES * total:
            return (subspace.directions @ tall.T).T
        start = subspace.directions
    else:
        start = noise @ tall
    subspace = _krylov(tall, tall.T, start, total, scratch)
    return None if subspace is None else subspace.images.T


def _rounded(
    tall: Float[Tensor, "rows side"], scratch: Buffers
) -> tuple[Float[Tensor, "rows side"], Float[Tensor, "side rows"]]:
    """Return A and Aᵀ in bf16, both by rows: products of a transposed view take twice the time."""
    rounded = _empty(scratch, "tall", tall.shape, torch.bfloat16)
    wide = _empty(scratch, "wide", tall.T.shape, torch.bfloat16)
    if tall.is_contiguous():
        wide.copy_(rounded.copy_(tall).T)
    else:
        rounded.copy_(wide.copy_(tall.T).T)
    return rounded, wide


def _empty(scratch: Buffers, key: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(scratch.empty(key, tuple(shape), _NUMPY[dtype])).view(dtype)


_NUMPY = {torch.bfloat16: np.int16, torch.float32: np.float32, torch.float64: np.float64}


def fast_bf16() -> bool:
    """Return whether this processor has instructions for matrices of bf16."""
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(resources.cpu_features())


class _Leading(NamedTuple):
    """Right singular vectors as rows, A times each, and the energy that they hold."""

    directions: Float[Tensor, "rank side"]
    images: Float[Tensor, "rank rows"]
    held: float


def _krylov(
    tall: Float[Tensor, "rows side"],
    wide: Float[Tensor, "side rows"],
    block: Float[Tensor, "rank side"],
    total: float,
    scratch: Buffers,
) -> _Leading | None:
    """Return the best that the block Krylov space of AᵀA from `block` holds, None where it grew too large.

    A comes as it is and transposed. The space grows by `rank` vectors at a time, orthogonalised twice against all that
    are there; the energy that it holds is the sum of the leading eigenvalues of (AV)ᵀ(AV). The last two gains,
    continued as a geometric series, tell what is missing. Vectors lie in rows, where growing needs no copy; with A in
    bf16 they stay in fp32.
    """
    (rank, side), noise = block.shape, NOISE[tall.dtype]
    most = min(MOST_BLOCKS * rank, side // 2)
    basis = _empty(scratch, "basis", (most, side), block.dtype)
    images = _empty(scratch, "images", (most, len(tall)), block.dtype)
    gram, held, gain = torch.empty((most, most), dtype=block.dtype), 0.0, math.inf
    for begin in range(0, most - rank + 1, rank):
        end = begin + rank
        for _ in range(2):
            block = torch.linalg.qr((block - (block @ basis[:begin].T) @ basis[:begin]).T)[0].T
        basis[begin:end] = block
        images[begin:end] = (tall @ block.T.to(tall.dtype)).T
        gram[begin:end, :end] = images[begin:end] @ images[:end].T
        gram[:begin, begin:end] = gram[begin:end, :begin].T
        if end >= FIRST_LOOK * rank:
            before, held = held, float(torch.linalg.eigvalsh(gram[:end, :end])[-rank:].double().sum())
            last, gain = gain, max(held - before, 0.0) if before else math.inf
            missing = gain**2 / (last - gain) if gain < last < math.inf else total
            if missing <= max(MISSING[tall.dtype] * (total - held), noise * held) or gain <= noise * held:
                leading = torch.linalg.eigh(gram[:end, :end])[1][:, -rank:].T
                return _Leading(leading @ basis[:end], leading @ images[:end], held)
        block = (wide @ images[begin:end].T.to(tall.dtype)).T.to(block.dtype)
    return None
