"""Truncated singular value decompositions.

Of A (m, n) with m ≥ n, the right singular vectors V are wanted. A few are found in the block Krylov space of AᵀA from a
random start (Musco & Musco, arXiv 1504.05477, Algorithm 2), which grows until the energy that it holds stands still;
all, or many, by `eigh` of the Gram matrix AᵀA. The factors then come from A itself: with Q = orth(A·V), by the
decomposition of QᵀA, so that squaring costs no accuracy of what is kept. Departure: the number of blocks follows from
the standstill, not from an error bound. Arithmetic is fp64 where the smaller side is at most 1024, else fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

FP64_SIDE = 1024
SMALL_RANK = 24
"""The Krylov space is tried where the smaller side is at least so many times the rank."""

MOST_BLOCKS = 32
STANDSTILL = {torch.float32: 5e-6, torch.float64: 1e-9}
"""The relative change of the energy held that ends the growth; what is still missing is a fraction of it."""

LOOK_AGAIN = 1.1
"""By how much the space grows between two looks at the energy, which cost the cube of its size."""


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


def truncated_svd(matrix: Float[Tensor, "rows columns"], rank: int) -> Svd:
    """Return the `rank` leading directions (fewer where the matrix has fewer)."""
    tall = _tall(matrix)
    rank = min(rank, tall.shape[1])
    basis = _krylov_basis(tall, rank) if SMALL_RANK * rank <= tall.shape[1] else None
    if basis is None:
        basis = torch.linalg.eigh(_gram(tall))[1][:, -rank:]
    tall = tall.to(basis.dtype)
    q = torch.linalg.qr(tall @ basis)[0]
    u, s, vt = torch.linalg.svd(q.T @ tall, full_matrices=False)
    found = Svd(q @ u, s, vt).leading(rank)
    return found if matrix.shape[0] >= matrix.shape[1] else Svd(found.vt.T, found.s, found.u.T)


def product_svd(a: Float[Tensor, "rank columns"], b: Float[Tensor, "rows rank"]) -> Svd:
    """Return the decomposition of b @ a in fp64 without forming the product: of the core between two QR's."""
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T)
    kept = min(len(u), len(vt))
    return Svd(q_b @ u[:, :kept], s[:kept], vt[:kept] @ q_a.T)


def _tall(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T


def _gram(tall: Float[Tensor, "rows side"]) -> Float[Tensor, "side side"]:
    """Return AᵀA, added up over blocks of rows."""
    dtype = torch.float64 if tall.shape[1] <= FP64_SIDE else torch.float32
    total = torch.zeros((tall.shape[1],) * 2, dtype=dtype)
    for block in tall.split(1 << 13):
        block = block.to(dtype)
        total.addmm_(block.T, block)
    return total


def _krylov_basis(tall: Float[Tensor, "rows side"], rank: int) -> Float[Tensor, "side rank"] | None:
    """Return the right singular vectors that the block Krylov space of AᵀA holds, None where it grew too large.

    The space grows by `rank` vectors at a time, orthogonalised twice against all that are there; the energy that it
    holds is the sum of the leading eigenvalues of (AV)ᵀ(AV).
    """
    dtype = torch.float64 if tall.shape[1] <= FP64_SIDE else torch.float32
    tall, most = tall.to(dtype), min(MOST_BLOCKS * rank, tall.shape[1] // 2)
    basis, images = torch.empty((tall.shape[1], most), dtype=dtype), torch.empty((tall.shape[0], most), dtype=dtype)
    gram, held, look = torch.empty((most, most), dtype=dtype), 0.0, 2.0 * rank
    block = torch.randn((tall.shape[1], rank), dtype=dtype, generator=torch.Generator().manual_seed(0))
    for begin in range(0, most - rank + 1, rank):
        end = begin + rank
        for _ in range(2):
            block = torch.linalg.qr(block - basis[:, :begin] @ (basis[:, :begin].T @ block))[0]
        basis[:, begin:end] = block
        images[:, begin:end] = tall @ block
        gram[begin:end, :end] = images[:, begin:end].T @ images[:, :end]
        gram[:begin, begin:end] = gram[begin:end, :begin].T
        if end >= look:
            look = end * LOOK_AGAIN
            before, held = held, float(torch.linalg.eigvalsh(gram[:end, :end])[-rank:].double().sum())
            if abs(held - before) <= STANDSTILL[dtype] * held:
                return basis[:, :end] @ torch.linalg.eigh(gram[:end, :end])[1][:, -rank:]
        block = tall.T @ images[:, begin:end]
    return None
