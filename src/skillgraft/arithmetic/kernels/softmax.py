"""PCB's exponentials and their exact sums: inner loops, compiled by Numba from the definition of the exponential."""

from __future__ import annotations

import numpy as np
from numba import njit

from skillgraft.arithmetic.statistics import pcb_scores

_exact = njit(nogil=True, error_model="numpy")
_exponential = _exact(pcb_scores.exponential)


@_exact
def softmax_numerators(one, other, low, width, out):  # type: ignore[no-untyped-def]
    """Write the exponentials of (one · other − low) / width − 1 into `out`."""
    for k in range(len(out)):
        out[k] = _exponential((one[k] * other[k] - low) / width - 1.0)


@_exact
def exact_sum(values):  # type: ignore[no-untyped-def]
    """Return the sum of `values` in units of 2⁻³⁰, and what is left of it in units of 2⁻⁶⁰."""
    whole = rest = 0.0
    for k in range(len(values)):
        scaled = values[k] * 1073741824.0
        floor = np.floor(scaled)
        whole += floor
        rest += np.rint((scaled - floor) * 1073741824.0)
    return whole, rest
