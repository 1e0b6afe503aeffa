"""A pair of vectors in a plain sentence: how they lie to each other, and whether chance would say the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skillgraft.support.formatting import MINUS, one_decimal

CHANCE_Z = 4.0
"""Below that many standard deviations a cosine is put down to chance."""

_NULLS = {
    "isotropic": "of these shapes and norms",
    "sign_flips": "with these magnitudes element by element",
    "rotation": "with the same subspaces on the shorter sides",
}
_DIRECTIONS = ((0.1, "nearly orthogonal"), (0.5, "weakly aligned"), (0.9, "aligned"), (2.0, "nearly parallel"))


def say_pair(pair: Mapping[str, Any]) -> str:
    """Return the sentence on a pair's measures, such as `nearly orthogonal, yet not by chance: cosine +0.0130, …`."""
    cosine, z = pair["cosine"], pair["z"]
    if cosine is None or z is None:
        return "no angle: one of the two is zero"
    known = {name: sd for name, sd in pair["chance_sd"].items() if sd is not None}
    widest = max(known, key=lambda name: known[name])
    size = next(word for most, word in _DIRECTIONS if abs(cosine) < most)
    if cosine < 0:
        size = size.replace("aligned", "opposed").replace("nearly parallel", "nearly opposite")
    if abs(z) < CHANCE_Z:
        verdict = f"{size}, as chance would have it" if abs(cosine) < 0.1 else f"{size}, within chance"
    else:
        verdict = f"{size}, yet not by chance" if abs(cosine) < 0.1 else f"{size}, not by chance"
    chance = f"random vectors {_NULLS[widest]} give 0 ± {plain(known[widest])}"
    apart, limit = pair["rms_z"], pair["rms_z_limit"]
    though = ""
    if abs(z) < CHANCE_Z and apart > limit:
        though = (
            f"; tensor by tensor not by chance: z has a root mean square of {one_decimal(apart)}, "
            f"where chance gives 1 and hardly {one_decimal(limit)}"
        )
    return f"{verdict}: cosine {signed(cosine)}, {chance} (z = {z_text(z)}){though}"


def signed(value: float | None) -> str:
    """Return a cosine with its sign: three decimals, or two digits where those would be zeros."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return f"{'+' if value > 0 else MINUS}{plain(abs(value))}"


def plain(value: float) -> str:
    """Return a number from 0 on without an exponent: three decimals, or two significant digits below 0.1."""
    if value >= 0.1 or value == 0:
        return f"{value:.3f}"
    exponent = int(f"{value:.1e}".partition("e")[2])  # after rounding: 0.00009999 is 0.00010
    return f"{value:.{min(12, 1 - exponent)}f}"


def z_text(value: float | None) -> str:
    """Return a number of standard deviations with one decimal, never as −0.0."""
    return one_decimal(None if value is None else round(value, 1) + 0.0)
