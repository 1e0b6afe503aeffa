"""Probes that run in a process of their own: a broken Torch or Numba may crash it or make it hang."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any


def inspect_torch() -> dict[str, Any]:
    """Return Torch's version, threads, accelerators and which precision pays."""
    import torch

    from skillgraft.models import precision

    kind = precision.device().type
    wish = os.environ.get("SKILLGRAFT_PRECISION")
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "cuda_build": torch.version.cuda,
        "device": kind,
        "accelerators": _accelerators(kind),
        "bf16": precision.bf16_pays(),
        "wish": wish if wish in {"bf16", "fp32"} else None,
        "speedup": precision.bf16_speedup() if kind == "cpu" and wish not in {"bf16", "fp32"} else None,
    }


def _accelerators(kind: str) -> list[dict[str, Any]]:
    import torch

    if kind == "cpu":
        return []
    if kind != "cuda":
        return [{"name": kind} for _ in range(torch.accelerator.device_count())]
    accelerators = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        accelerators.append({"name": torch.cuda.get_device_name(number), "free": free, "total": total})
    return accelerators


def inspect_numba() -> dict[str, Any]:
    """Return Numba's version and where it keeps compiled kernels (None: nowhere)."""
    import numba

    from skillgraft.support.compiled import folder

    kernels = folder()
    return {"version": numba.__version__, "cache": None if kernels is None else str(kernels)}


PROBES: dict[str, Callable[[], dict[str, Any]]] = {"torch": inspect_torch, "numba": inspect_numba}


def tell(name: str) -> None:
    """Print what the probe `name` finds as one line of JSON."""
    print(json.dumps(PROBES[name]()))
