"""Null distributions: cosines of vectors, and overlaps of subspaces, that have nothing in common.

Of the vectors a and b each null keeps something and draws the rest at random. In all of them the cosine has mean 0; the
variances below are of <a, b'>, exact, add up over tensors, and divided by ‖a‖²·‖b‖² are those of the cosine.

isotropic   Keeps the norm of b in each tensor; its direction is uniform. cos² ~ Beta(1/2, (n − 1)/2) with mean 1/n, so
            that the variance is ‖a‖²·‖b‖²/n. The same holds for b' = U·b·V of a matrix with U and V uniform
            orthogonal, which keeps all singular values: flipping signs of rows and columns of b' changes nothing in
            its distribution, so that E[b'_ij·b'_kl] = 0 unless (i, j) = (k, l), permuting them makes all E[b'_ij²]
            equal, and they sum to ‖b‖². So a few large singular values do not widen chance; they do make its tails
            heavier than normal in a single tensor.
sign flips  Keeps the magnitude of every element: b'_i = s_i·b_i with random signs. Var = Σ a_i²·b_i². For a matrix the
            flips may also be of whole rows and whole columns, b'_ij = s_i·t_j·b_ij, which keeps all singular values
            and all norms of rows and columns: E[s_i·s_k·t_j·t_l] = 0 unless (i, j) = (k, l), so that the variance is
            the same Σ a²·b². Vectors that are large in the same places are further from 0 by chance than isotropic
            ones: they have fewer dimensions in effect, ‖a‖²·‖b‖²/Σ a²·b².
rotation    For a matrix with shorter side s and longer side l: keeps the subspaces and singular values on the shorter
            side, rotates the longer one, b' = U·b (or b·U) with U uniform in O(l). <a, b'> = tr(aᵀ·U·b) = <U, a·bᵀ>,
            and E[U_ij·U_kl] = [(i, j) = (k, l)]/l, so that the variance is ‖a·bᵀ‖²/l = tr(aᵀa·bᵀb)/l. It is widest
            where both write to, or read from, the same few directions. Known where spectra are; for tensors that are
            not matrices the sign flips stand in.
"""

from __future__ import annotations

import math

ISOTROPIC, SIGN_FLIPS, ROTATION = "isotropic", "sign_flips", "rotation"


def isotropic_sd(elements: float) -> float:
    """Return the standard deviation of the cosine between independent uniform directions in `elements` dimensions."""
    return 1.0 / math.sqrt(elements)


def cosine_sd(variance: float, square: float, other_square: float) -> float | None:
    """Return the standard deviation of the cosine from the variance of the dot product; None for a zero vector."""
    return math.sqrt(variance / square / other_square) if square > 0 and other_square > 0 else None


def subspace_overlap(rank: int, other_rank: int, dimensions: int) -> tuple[float, float]:
    """Return mean and standard deviation of the mean squared cosine of the principal angles of random subspaces.

    For independent uniform subspaces of p and q dimensions in d, T = ‖XᵀY‖² (the sum of the squared cosines, of which
    there are min(p, q)) has E T = p·q/d and Var T = 2·p·q·(d − p)·(d − q) / (d²·(d − 1)·(d + 2)): T = tr(P·Q) is linear
    in the projection Q, whose second moments are those of any distribution of symmetric matrices that rotations leave
    alone, with tr Q = tr Q² = q. For q = 1 it is Beta(p/2, (d − p)/2).
    """
    p, q, d, few = rank, other_rank, dimensions, min(rank, other_rank)
    variance = 2.0 * p * q * (d - p) * (d - q) / (d * d * (d - 1.0) * (d + 2.0)) if d > 1 else 0.0
    return p * q / d / few, math.sqrt(variance) / few
