"""The compiled kernel of a comparison as it is called, and the numbers that name its sums. Loads no Numba."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from skillgraft.support.compiled import Compiled

BLOCK = 4096
"""Elements that are worked on together: the differences of a few vectors stay in a core's first caches."""

DOT, FOURTH, SAME, OPPOSITE = 0, 1, 2, 3
"""The sums of each pair: a·b, a²·b², [a·b > 0], [a·b < 0]."""

_compare_tile = Compiled(
    "skillgraft.geometry.kernels",
    "compare_tile",
    "u1[:,:] i8[:] i8 i8[:] i8[:] f8[:] i8 f4[:] =f8[:,:] =f8[:] =f8[:,:] =f8[:]",
    "f8",
    (
        "skillgraft.geometry.native",
        *(f"skillgraft.arithmetic.kernels.{name}" for name in ("codes", "native", "sources")),
    ),
)
_workspace = threading.local()


def compare_tile(*arguments: Any) -> float:
    """Call `kernels.compare_tile` with all but its last two arguments; return ‖base‖²."""
    vectors = len(arguments[3]) - 1
    rows = getattr(_workspace, "rows", None)
    if rows is None or len(rows) < vectors + 1:
        rows = _workspace.rows = np.empty((vectors + 1, BLOCK))
    return float(_compare_tile(*arguments, rows[1:], rows[0]))
