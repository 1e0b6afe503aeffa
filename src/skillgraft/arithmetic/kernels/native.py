"""The compiled kernels as they are called. Loads no Numba.

`tiles`, `sources`, `rounding` and `softmax` define them and say what they do. Their workspace is kept here, one for
each thread.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from skillgraft.support.compiled import Compiled

BLOCK = 8192
"""Elements that are worked on together: few enough for the cache, enough that a block's own cost does not show."""
WORK = 6
"""Rows of a block that `merge_tile` needs beside one for each operand."""
HALF_VALUES = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
"""Every fp16 number by its bits: exact, and quicker than taking the bits apart."""

_KERNELS = "skillgraft.arithmetic.kernels"
_SOURCES = tuple(f"{_KERNELS}.{name}" for name in ("codes", "native", "sources", "rounding"))
_SOFTMAX_SOURCES = ("skillgraft.arithmetic.statistics.pcb_scores",)


def _kernel(
    name: str, arguments: str, result: str = "", module: str = "tiles", sources: Sequence[str] = _SOURCES
) -> Compiled:
    return Compiled(f"{_KERNELS}.{module}", name, arguments, result, sources)


_merge_tile = _kernel(
    "merge_tile",
    "u1[:,:] i8[:] i8 i8[:] i8[:] f8[:] f8[:] b1[:,:] f8 i8 f8[:] b1 f8 f8 i8 f8[:] f4[:] =u1[:,:] i8 =f8[:] =f8[:,:]",
    "b1",
)
_values_tile = _kernel("values_tile", "u1[:,:] i8[:] i8 i8 i8 i8[:] f8[:] f4[:] =f8[:] =f8[:]", module="sources")
_keys_between = _kernel("keys_between", "f8[:] i8 i8 =i4[:] =f4[:] =u1[:]", "i8 i8")
_count_against = _kernel("count_against", "f8[:] i8[:] =i8[:] =i8[:] =f4[:]")
all_finite = _kernel("all_finite", "f8[:]", "b1", module="sources")
gram_tile = _kernel("gram_tile", "f8[:,:] =f8[:,:]", module="sources")
product_tile = _kernel("product_tile", "f8[:,:] f8[:,:] i8 i8 =f8[:]", module="sources")
softmax_numerators = _kernel(
    "softmax_numerators", "f8[:] f8[:] f8 f8 =f8[:]", module="softmax", sources=_SOFTMAX_SOURCES
)
exact_sum = _kernel("exact_sum", "f8[:]", "f8 f8", module="softmax", sources=_SOFTMAX_SOURCES)


class _Workspace(threading.local):
    """Buffers for the kernels of one thread."""

    def __init__(self) -> None:
        self.rows = np.empty((WORK + 2, BLOCK))
        self.single = np.empty(BLOCK, dtype=np.float32)
        self.inside = np.empty(BLOCK, dtype=np.uint8)

    def work(self, operands: int) -> np.ndarray:
        """Return rows of a block for `merge_tile`."""
        if len(self.rows) < WORK + operands:
            self.rows = np.empty((WORK + operands, BLOCK))
        return self.rows


_workspace = _Workspace()


def merge_tile(*arguments: Any) -> bool:
    """Call `tiles.merge_tile` with all but its last argument; return whether all is finite."""
    weights = arguments[6]
    return bool(_merge_tile(*arguments, _workspace.work(len(weights))))


def values_tile(*arguments: Any) -> None:
    """Call `sources.values_tile` with all but its last argument."""
    _values_tile(*arguments, _workspace.rows[0])


def keys_between(values: np.ndarray, low: int, high: int, out: np.ndarray) -> tuple[int, int]:
    """Write the magnitude keys from `low` to `high` into `out` (int32); return (how many, how many are beyond)."""
    inside, beyond = _keys_between(values, low, high, out, _workspace.single, _workspace.inside)
    return inside, beyond


def count_against(values: np.ndarray, keys: np.ndarray, more: np.ndarray, same: np.ndarray) -> None:
    """Add to `more` and `same` (int64) how many magnitude keys of `values` are above each of `keys`, and equal."""
    _count_against(values, keys, more, same, _workspace.single)
