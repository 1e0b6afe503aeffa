"""Resources of this machine: memory and cores, container limits included. Loads no torch."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes that this process may use at all, and those free now (None where the system does not say)."""

    total: int
    available: int | None
    limited: bool = False
    """True if a container's limit, not the machine, is what counts."""


def memory(root: Path = Path("/")) -> Memory:
    """Return the memory of the machine under `root`, or the tightest limit of the process's control groups.

    Within a limit, pages of files that can be dropped (`inactive_file`) count as available, as `MemAvailable` does.
    """
    machine = _meminfo(root)
    total, available = machine.get("MemTotal"), machine.get("MemAvailable")
    if total is None:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limited = False
    for folder, names in _groups(root, "memory", ("memory.max", "memory.current"), _V1_MEMORY):
        limit, used = (_integer(folder / name) for name in names)
        if limit is None or limit >= machine.get("MemTotal", total):
            continue
        free = limit - (used or 0) + _reclaimable(folder)
        limited, total = True, min(total, limit)
        available = min(free, limit) if available is None else min(available, free, limit)
    return Memory(total, None if available is None else max(available, 0), limited)


def resident(root: Path = Path("/")) -> tuple[int, int] | None:
    """Return the bytes of memory that this process holds now and held at most, None where the system does not say."""
    own = {line.partition(":")[0]: line.split() for line in _lines(root / "proc/self/status")}
    try:
        now, peak = (int(own[key][1]) * 1024 for key in ("VmRSS", "VmHWM"))
    except (KeyError, IndexError, ValueError):
        return None
    return now, peak


def cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may keep busy: its affinity, or a control group's quota where that is less."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder, (name, period_name) in _groups(root, "cpu", ("cpu.max", ""), _V1_CPU):
        if period_name:
            quota, period = _integer(folder / name), _integer(folder / period_name)
        else:
            quota, period = _pair(folder / name)
        if quota and period and quota > 0:
            usable = min(usable, math.ceil(quota / period))
    return max(usable, 1)


def cpu_features(root: Path = Path("/")) -> frozenset[str]:
    """Return the CPU's feature flags in Linux's words, such as `avx512_bf16`; empty where the system lists none."""
    for line in _lines(root / "proc/cpuinfo"):
        key, _, value = line.partition(":")
        if key.strip() in {"flags", "Features"}:
            return frozenset(value.split())
    return frozenset()


_V1_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes")
_V1_CPU = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def _groups(
    root: Path, controller: str, v2: tuple[str, str], v1: tuple[str, str]
) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Yield the process's control groups, inner to outer, each with the names of its files (version 2 or 1)."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controllers and controller)
        here = top / path.lstrip("/")
        while here != top.parent:
            if here.is_dir():  # a container sees its own group as the top, and not the path that leads to it
                yield here, (v1 if controllers else v2)
            here = here.parent


def _meminfo(root: Path) -> dict[str, int]:
    pairs = (line.partition(":") for line in _lines(root / "proc/meminfo"))
    return {key: int(value.split()[0]) * 1024 for key, _, value in pairs if value.split()}


def _reclaimable(folder: Path) -> int:
    for line in _lines(folder / "memory.stat"):
        key, _, value = line.partition(" ")
        if key in {"inactive_file", "total_inactive_file"} and value.isdigit():
            return int(value)
    return 0


def _integer(file: Path) -> int | None:
    text = next(iter(_lines(file)), "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _pair(file: Path) -> tuple[int | None, int | None]:
    parts = next(iter(_lines(file)), "").split()
    numbers = [int(part) if part.isdigit() else None for part in parts]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (None, None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def release_memory() -> None:
    """Give back what a finished stage held: models in reference cycles, and what the C library keeps for later."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # glibc has it
        ctypes.CDLL(None).malloc_trim(0)
