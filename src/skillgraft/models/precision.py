"""Precision of training and generation on this machine: bf16 or fp32, measured once rather than guessed.

On CPUs with bfloat16 units, bf16 autocast over fp32 weights is 2 to 3 times as fast as fp32; on those without, it is
several times slower. A short matrix product tells.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from skillgraft.support.atomic import atomic_write_text

_DECIDED: ContextVar[bool | None] = ContextVar("bf16", default=None)


def device() -> torch.device:
    """Return the accelerator if Torch sees one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


@contextmanager
def one_precision(work: Path) -> Iterator[None]:
    """Decide once for all of a stage's work in the folder `work`, also for what goes on after a kill.

    Else a resumed run on a machine that is busy just then could probe another answer and go on in another arithmetic.
    """
    file = work / "precision"
    if not file.exists():
        atomic_write_text(file, "bf16" if bf16_pays() else "fp32")
    token = _DECIDED.set(file.read_text() == "bf16")
    try:
        yield
    finally:
        _DECIDED.reset(token)


def bf16_pays() -> bool:
    """Return whether to compute in bf16: what `one_precision` decided, else what a probe says (0.1 s on a CPU).

    bf16 must be at least 1.3 times as fast as fp32. `SKILLGRAFT_PRECISION=bf16` or `fp32` decides instead of the probe.
    """
    decided = _DECIDED.get()
    return _probe() if decided is None else decided


@functools.cache
def _probe() -> bool:
    wish = os.environ.get("SKILLGRAFT_PRECISION")
    if wish in {"bf16", "fp32"}:
        return wish == "bf16"
    if device().type != "cpu":
        return device().type != "cuda" or torch.cuda.is_bf16_supported()
    return bf16_speedup() > 1.3


def bf16_speedup() -> float:
    """Return how many times as fast as in fp32 a matrix product in bf16 is on this CPU."""
    return _seconds(torch.float32) / _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    a, b = torch.ones(256, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return best


def describe() -> str:
    """Return what runs, for a person: `cpu, bf16 autocast over fp32 weights`."""
    return f"{device()}, {'bf16 autocast over fp32 weights' if bf16_pays() else 'fp32'}"
