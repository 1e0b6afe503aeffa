"""One rounding from fp64 to what is stored, and how much of a change it leaves.

Torch (2.13) casts fp64 to bf16 and fp16 by way of fp32: two roundings, which differ from one where the first lands
exactly between two stored values (about 1 element in 65,536). Those elements are found and rounded again here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skillgraft.arithmetic.scratch import Scratch

# Of fp32's 23 bits after the point bf16 keeps 7 and fp16 10 (fewer below 2**-14, where ties have more zeros still).
_TAIL = {torch.bfloat16: (0xFFFF, 0x8000), torch.float16: (0x0FFF, 0)}


def round_once(exact: Float[Tensor, " n"], dtype: torch.dtype, scratch: Scratch) -> Float[Tensor, " n"]:
    """Return `exact` (fp64) in `dtype`, each element rounded once, to the nearest and ties to even.

    The result lies in a buffer of `scratch` that the next call reuses (for fp64 it is `exact` itself).
    """
    if dtype == torch.float64:
        return exact
    if dtype == torch.float32:
        return scratch.like("stored", exact, dtype).copy_(exact)
    single = scratch.like("single", exact, torch.float32).copy_(exact)
    stored = scratch.like("stored", exact, dtype).copy_(single)
    suspects = _suspects(single, *_TAIL[dtype], scratch)
    if len(suspects):
        _round_again(exact, single, stored, suspects)
    return stored


def is_finite(tensor: Float[Tensor, " n"]) -> bool:
    """Return whether no element is NaN or infinite; a finite sum proves it without a pass of comparisons."""
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


def squared_loss(stored: Float[Tensor, " n"], exact: Float[Tensor, " n"], scratch: Scratch) -> float:
    """Return ‖stored − exact‖² in fp64."""
    back = scratch.like("back", exact, torch.float64).copy_(stored)
    back.sub_(exact)
    return torch.dot(back, back).item()


def _suspects(single: Float[Tensor, " n"], mask: int, pattern: int, scratch: Scratch) -> np.ndarray:
    """Return the positions where fp32's tail makes a tie of the second rounding possible."""
    if single.device.type != "cpu":
        return torch.nonzero(torch.bitwise_and(single.view(torch.int32), mask) == pattern).reshape(-1).cpu().numpy()
    tail = scratch.like("tail", single, torch.int32).numpy()
    found = scratch.like("found", single, torch.bool).numpy()
    np.bitwise_and(single.numpy().view(np.int32), mask, out=tail)
    np.equal(tail, pattern, out=found)
    return np.flatnonzero(found)


def _round_again(exact: Tensor, single: Tensor, stored: Tensor, suspects: np.ndarray) -> None:
    places = torch.from_numpy(suspects).to(exact.device)
    double, once = exact[places].cpu().numpy(), single[places].cpu().numpy()
    inexact = (once != double) & np.isfinite(once)
    if not inexact.any():
        return
    places, double, once = places[torch.from_numpy(inexact).to(places.device)], double[inexact], once[inexact]
    if stored.dtype == torch.float16:
        with np.errstate(over="ignore"):  # infinity is what it must become; whoever stores it checks
            fixed = torch.from_numpy(double.astype(np.float16))  # NumPy rounds fp64 to fp16 once
    else:
        bits = (once.view(np.uint32) >> 16) + (np.abs(double) > np.abs(once))
        fixed = torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
    stored[places] = fixed.to(stored.device)
