"""One rounding from fp64 to what is stored, on Torch tensors (on the CPU, `kernels` has the same).

Torch (2.13) casts fp64 to bf16 and fp16 by way of fp32: two roundings, which differ from one where the first lands
exactly between two stored values (about 1 element in 65,536). Those elements are found and rounded again here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

# Of fp32's 23 bits after the point bf16 keeps 7 and fp16 10 (fewer below 2**-14, where ties have more zeros still).
_TAIL = {torch.bfloat16: (0xFFFF, 0x8000), torch.float16: (0x0FFF, 0)}


def round_once(exact: Float[Tensor, " n"], dtype: torch.dtype) -> Float[Tensor, " n"]:
    """Return `exact` (fp64) in `dtype`, each element rounded once, to the nearest and ties to even."""
    if dtype in (torch.float64, torch.float32):
        return exact.to(dtype)
    single = exact.float()
    stored = single.to(dtype)
    mask, pattern = _TAIL[dtype]
    suspect = (torch.bitwise_and(single.view(torch.int32), mask) == pattern) & (single.double() != exact)
    places = torch.nonzero(suspect & torch.isfinite(single)).reshape(-1)
    if len(places):
        double, once = exact[places].cpu().numpy(), single[places].cpu().numpy()
        if dtype == torch.float16:
            with np.errstate(over="ignore"):  # infinity is what it must become; whoever stores it checks
                fixed = torch.from_numpy(double.astype(np.float16))  # NumPy rounds fp64 to fp16 once
        else:
            bits = (once.view(np.uint32) >> 16) + (np.abs(double) > np.abs(once))
            fixed = torch.from_numpy(bits.astype(np.uint16).view(np.int16)).view(torch.bfloat16)
        stored[places] = fixed.to(stored.device)
    return stored


def is_finite(tensor: Float[Tensor, " n"]) -> bool:
    """Return whether no element is NaN or infinite; a finite sum proves it without a pass of comparisons."""
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())
