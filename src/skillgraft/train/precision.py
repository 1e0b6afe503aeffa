"""Which precision training and generation run in on this machine, measured once rather than guessed.

On CPUs with bfloat16 units, bf16 autocast over fp32 weights is 2 to 3 times as fast as fp32; on those without, it is
several times slower. A short matrix product tells.
"""

from __future__ import annotations

import functools
import os
import time

import torch


def device() -> torch.device:
    """Return the accelerator if Torch sees one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


@functools.cache
def bf16_pays() -> bool:
    """Return whether bf16 arithmetic is at least 1.3 times as fast as fp32 here (a 0.1 s probe on a CPU).

    `SKILLGRAFT_PRECISION=bf16` or `fp32` decides instead of the probe.
    """
    wish = os.environ.get("SKILLGRAFT_PRECISION")
    if wish in {"bf16", "fp32"}:
        return wish == "bf16"
    if device().type != "cpu":
        return device().type != "cuda" or torch.cuda.is_bf16_supported()
    return _seconds(torch.float32) > 1.3 * _seconds(torch.bfloat16)


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
