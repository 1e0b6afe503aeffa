"""Spherical linear interpolation between two tensors (Shoemake 1985, section 3.3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


PARALLEL = 0.9995
"""Above this cos θ the straight line is taken: sin θ would divide by almost nothing."""

OPPOSITE = -1.0 + 1e-12
"""Below this cos θ every great circle through a passes b: no path is the shortest."""


def slerp_weights(t: float, dot: float, norm_a: float, norm_b: float) -> tuple[float, float]:
    """Return (sin((1−t)θ)/sin θ, sin(tθ)/sin θ), θ the angle between a and b; (1−t, t) for parallel or zero tensors.

    `dot` is a·b, the norms are Frobenius norms, all of whole tensors. `ValueError` for opposite tensors.
    """
    cosine = dot / (norm_a * norm_b) if norm_a > 0 and norm_b > 0 else 1.0
    if cosine > PARALLEL:
        return 1.0 - t, t
    if cosine < OPPOSITE:
        raise ValueError("the two tensors are opposite, so that no path between them is the shortest")
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def slerp(a: Float[Tensor, " n"], b: Float[Tensor, " n"], weights: tuple[float, float]) -> Float[Tensor, " n"]:
    """Return w_a·a + w_b·b with the weights of `slerp_weights`; may overwrite both."""
    return a.mul_(weights[0]).add_(b.mul_(weights[1]))
