"""Spectra of the matrices of a comparison, one matrix at a time: singular values, ranks, angles between subspaces.

A matrix is read in blocks of rows. The Gram matrix of its shorter side, in fp64, gives every singular value; those
below √(8·s·ε)·σ₁ (s the shorter side, about 1e-6·σ₁) cannot be told from 0 by it and count as 0. Nothing is estimated
by sampling. BLAS and LAPACK may differ in the last digits between machines and numbers of threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.plan_types import Operand
from skillgraft.arithmetic.tiles import Tile
from skillgraft.geometry.nulls import subspace_overlap
from skillgraft.geometry.plan import ComparedTensor, ComparePlan
from skillgraft.geometry.sums import arrange, read_sources
from skillgraft.support.progress import Progress

if TYPE_CHECKING:
    from jaxtyping import Float

BLOCK_ELEMENTS = 1 << 22
ENERGY_RANKS = (1, 8, 32, 128)


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix (out, in), its Gram matrix on the shorter side and its leading subspaces.

    `left` is in the space of outputs, `right` in that of inputs; both have orthonormal columns.
    """

    values: Float[np.ndarray, " shorter"]
    gram: Float[np.ndarray, "shorter shorter"]
    left: Float[np.ndarray, "out leading"]
    right: Float[np.ndarray, "in leading"]


@dataclass(frozen=True)
class Spectra:
    """The measures of one matrix: by vector (None where it is zero), by pair, and the rotation null's variances."""

    vectors: tuple[dict[str, object] | None, ...]
    pairs: dict[tuple[int, int], dict[str, object]]
    rotation: Float[np.ndarray, "k k"]


def spectra(plan: ComparePlan, rank: int, progress: Progress | None = None) -> dict[str, Spectra]:
    """Return the spectra of every matrix of the plan; subspaces are those of the `rank` largest singular values.

    Memory: one matrix in fp64 (a tall one in blocks), and of each vector a Gram matrix and `rank` columns a side.
    """
    by_matrix = {}
    matrices = [tensor for tensor in plan.tensors if len(tensor.shape) == 2 and min(tensor.shape) > 1]
    total = sum(tensor.elements * len(tensor.operands) for tensor in matrices)
    done = 0
    with Files(plan.versions) as files:
        for tensor in matrices:
            spectrums: list[Spectrum | None] = [None] * len(plan.vectors)
            for operand in tensor.operands:
                spectrums[operand.number] = spectrum(tensor, operand, rank, files)
                done += tensor.elements
                if progress is not None:
                    progress(done, total)
            by_matrix[tensor.name] = _measure(tensor, spectrums)
    return by_matrix


def spectrum(tensor: ComparedTensor, operand: Operand, rank: int, files: Files) -> Spectrum | None:
    """Return the spectrum of one vector's matrix, None where all of it is zero."""
    rows, columns = tensor.shape
    tall = rows >= columns
    gram = np.zeros((min(rows, columns),) * 2)
    for block in _blocks(tensor, operand, files):
        gram += block.T @ block if tall else block @ block.T
    squares, vectors = np.linalg.eigh(gram)
    squares, vectors = squares[::-1], vectors[:, ::-1]
    if not squares[0] > 0:
        return None
    resolution = 8 * len(squares) * np.finfo(np.float64).eps * squares[0]
    values = np.sqrt(np.where(squares > resolution, squares, 0.0))
    short = vectors[:, : min(rank, int(np.count_nonzero(values)))]
    parts = [block @ short if tall else block.T @ short for block in _blocks(tensor, operand, files)]
    long = np.linalg.qr(np.concatenate(parts))[0]
    return Spectrum(values, gram, long if tall else short, short if tall else long)


def effective_rank(values: Float[np.ndarray, " n"]) -> float:
    """Return exp(H) of the singular values over their sum, H = −Σ p·ln p (Roy & Vetterli 2007, section 2)."""
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(values: Float[np.ndarray, " n"]) -> float:
    """Return ‖A‖²_F / ‖A‖²_2 (Rudelson & Vershynin 2007, section 1)."""
    return float((values**2).sum() / values[0] ** 2)


def energy(values: Float[np.ndarray, " n"], rank: int) -> float:
    """Return Σ_{i <= rank} σ_i² / Σ σ_i²: what the best approximation of that rank keeps (Eckart & Young 1936)."""
    return float((values[:rank] ** 2).sum() / (values**2).sum())


def principal_angles(
    one: Float[np.ndarray, "dimensions p"], other: Float[np.ndarray, "dimensions q"]
) -> Float[np.ndarray, " few"]:
    """Return the min(p, q) principal angles in radians, smallest first, of the spans of two orthonormal bases.

    cos θ_i = σ_i(XᵀY), and sin θ_i = σ_i(Y − X·XᵀY) where the cosine is near 1 and says little (Björck & Golub 1973,
    theorem 1 and section 3), with Y the smaller of the two.
    """
    if other.shape[1] > one.shape[1]:
        one, other = other, one
    inner = one.T @ other
    cosines = np.clip(np.linalg.svd(inner, compute_uv=False), 0.0, 1.0)
    sines = np.clip(np.linalg.svd(other - one @ inner, compute_uv=False)[::-1], 0.0, 1.0)
    return np.where(cosines**2 < 0.5, np.arccos(cosines), np.arcsin(sines))


def _blocks(tensor: ComparedTensor, operand: Operand, files: Files) -> Iterator[Float[np.ndarray, "rows in"]]:
    """Yield the vector's matrix by blocks of rows in fp64; a matrix that is wider than tall comes whole."""
    rows, columns = tensor.shape
    step = max(1, BLOCK_ELEMENTS // columns) if rows >= columns else rows
    alone, buffers = replace(tensor, base=None), Buffers()
    arrangement = arrange(alone, [operand])
    for first in range(0, rows, step):
        last = min(first + step, rows)
        block = np.zeros((last - first) * columns)
        stop = min(last * columns, operand.elements)
        if stop > first * columns:
            tile = Tile(first * columns, stop)
            count = tile.stop - tile.start
            raws = read_sources(arrangement, tile, buffers, files)
            native.values_tile(
                raws,
                arrangement.codes,
                count,
                0,
                len(arrangement.terms),
                arrangement.terms,
                arrangement.signs,
                native.HALF_VALUES,
                block[:count],
            )
        yield block.reshape(-1, columns)


def _measure(tensor: ComparedTensor, spectrums: Sequence[Spectrum | None]) -> Spectra:
    vectors = tuple(None if one is None else _vector(one.values) for one in spectrums)
    rotation = np.zeros((len(spectrums),) * 2)
    pairs: dict[tuple[int, int], dict[str, object]] = {}
    for i, one in enumerate(spectrums):
        for j, other in enumerate(spectrums[: i + 1]):
            if one is None or other is None:
                continue
            rotation[i, j] = rotation[j, i] = float((one.gram * other.gram).sum()) / max(tensor.shape)
            if j < i:
                pairs[j, i] = {"left": _subspaces(other.left, one.left), "right": _subspaces(other.right, one.right)}
    return Spectra(vectors, pairs, rotation)


def _vector(values: np.ndarray) -> dict[str, object]:
    return {
        "effective_rank": effective_rank(values),
        "stable_rank": stable_rank(values),
        "rank": int(np.count_nonzero(values)),
        "full_rank": len(values),
        "largest": float(values[0]),
        "energy": {str(rank): energy(values, rank) for rank in ENERGY_RANKS if rank < len(values)},
    }


def _subspaces(one: np.ndarray, other: np.ndarray) -> dict[str, object]:
    angles = principal_angles(one, other)
    mean, sd = subspace_overlap(one.shape[1], other.shape[1], one.shape[0])
    return {
        "degrees": [float(angle) for angle in np.degrees(angles)],
        "overlap": float((np.cos(angles) ** 2).mean()),
        "expected": mean,
        "sd": sd,
    }
