"""Torch, the precision that pays, devices, threads, and where compiled arithmetic is kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from skillgraft.doctor.findings import Finding

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
BF16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")
"""Flags of CPUs that multiply bf16 in hardware (x86: the first two; ARM: the last)."""

SECONDS = 120.0
"""After which a probe counts as hanging: a first import from a slow disk takes long."""


_PROBE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from skillgraft.doctor import probes; probes.tell(sys.argv[1])"
)
"""Run with this process's own search path, so that it finds the same packages."""


def probe(name: str, seconds: float = SECONDS) -> dict[str, Any]:
    """Return the result of the probe `name`; if it failed, only `error`, the reason."""
    command = [sys.executable, "-c", _PROBE, name, json.dumps(sys.path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"importing {name} gave no answer in {seconds:.0f} s"}
    if done.returncode < 0:
        return {"error": f"importing {name} ended the process ({signal.Signals(-done.returncode).name})"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        complaint = done.stderr.strip().splitlines() or ["no reason given"]
        return {"error": complaint[-1]}
    return json.loads(lines[-1])


def check_torch(torch: Mapping[str, Any]) -> list[Finding]:
    """Say whether Torch can be imported."""
    if "error" in torch:
        return [
            Finding(
                "torch",
                "error",
                str(torch["error"]),
                "nothing can be trained or evaluated; merging and injecting on the CPU work without it",
                "install Torch again, in the version for this machine: https://pytorch.org/get-started/locally",
            )
        ]
    return [Finding("torch", "ok", f"{torch['version']}, {_count(torch['threads'], 'thread')}", "can be imported")]


def check_precision(torch: Mapping[str, Any]) -> list[Finding]:
    """Say which arithmetic training will use, and why."""
    if "error" in torch:
        return []
    state = "bf16 autocast over fp32 weights" if torch["bf16"] else "fp32"
    if torch["wish"]:
        return [Finding("precision", "note", state, f"SKILLGRAFT_PRECISION={torch['wish']} decides, not a measurement")]
    if torch["device"] != "cpu":
        return [Finding("precision", "ok", state, f"what {torch['device']} supports")]
    measured = f"a matrix product in bf16 is {torch['speedup']:.1f} times as fast as in fp32 here"
    return [Finding("precision", "ok", state, f"{measured}; bf16 is taken from 1.3 times on")]


def check_devices(torch: Mapping[str, Any], driver: bool, features: Collection[str]) -> list[Finding]:
    """Name the CPU's units and the accelerators; warn of a GPU that Torch cannot use."""
    units = [name for name in BF16_UNITS if name in features]
    kernels = f"{torch['kernels']} kernels, " if "kernels" in torch else ""
    text = f"CPU: {kernels}{'bf16 units: ' + ', '.join(units) if units else 'no bf16 units known'}"
    findings = [Finding("devices", "ok", text, "merging and injecting run here; training too without an accelerator")]
    for number, each in enumerate(torch.get("accelerators", [])):
        free = f", {gib(each['free'])} of {gib(each['total'])} free" if "total" in each else ""
        findings.append(
            Finding("devices", "ok", f"{torch['device']}:{number}: {each['name']}{free}", "training runs here")
        )
    if driver and torch.get("device") == "cpu":
        build = "Torch is built without CUDA" if torch["cuda_build"] is None else "Torch is built for CUDA"
        findings.append(
            Finding(
                "devices",
                "warning",
                f"an NVIDIA driver is here, but Torch sees no GPU; {build} {torch['cuda_build'] or ''}".rstrip(),
                "training runs on the CPU, many times slower",
                "install the Torch build for your CUDA version; look at CUDA_VISIBLE_DEVICES and at nvidia-smi",
            )
        )
    return findings


def nvidia_driver() -> bool:
    """Return whether an NVIDIA driver is installed, whether or not Torch can use it."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def check_threads(cores: int, torch_threads: int | None, environ: Mapping[str, str]) -> list[Finding]:
    """Compare the threads that libraries will start with the cores that this process may use."""
    findings = []
    settings = {name: environ[name] for name in THREAD_VARIABLES if environ.get(name)}
    for name, value in settings.items():
        if not value.isdigit() or int(value) < 1:
            text, meaning = f"{name}={value} is not a number of threads", "libraries ignore it or stop"
        elif int(value) > cores:
            text = f"{name}={value} on {_count(cores, 'core')}"
            meaning = "threads take turns on the cores, which is slower than one thread a core"
        else:
            continue
        findings.append(Finding("threads", "warning", text, meaning, f"export {name}={cores}"))
    if findings:
        return findings
    if torch_threads is not None and torch_threads > cores:
        text = f"Torch starts {torch_threads} threads on {_count(cores, 'core')}"
        meaning = "a container's quota is less than the machine; the threads wait for each other"
        return [Finding("threads", "warning", text, meaning, f"export OMP_NUM_THREADS={cores}")]
    few = {name: value for name, value in settings.items() if int(value) < cores}
    if few:
        text = ", ".join(f"{name}={value}" for name, value in few.items())
        meaning = f"fewer threads than the {_count(cores, 'core')} that this process may use"
        return [Finding("threads", "note", text, meaning, f"unset {' '.join(few)}, unless others need the cores")]
    return [
        Finding("threads", "ok", _count(cores, "core"), "as many as this process may use; not more threads than that")
    ]


def check_numba(numba: Mapping[str, Any]) -> list[Finding]:
    """Say whether the arithmetic can be compiled, and whether the result is kept."""
    name = "compiled arithmetic"
    if "error" in numba:
        meaning = "extract, inject and merge stop with an error"
        return [Finding(name, "error", str(numba["error"]), meaning, "python -m pip install --force-reinstall numba")]
    folder = numba["cache"]
    if folder is None or not _writable(Path(folder)):
        state = (
            f"Numba {numba['version']} finds no folder that it can write"
            if folder is None
            else f"{folder} is read-only"
        )
        meaning = "merging compiles it each time: some seconds more"
        return [Finding(name, "warning", state, meaning, "export NUMBA_CACHE_DIR=a folder that can be written")]
    return [Finding(name, "ok", f"Numba {numba['version']}, kept in {folder}", "compiled once, then started at once")]


def _writable(folder: Path) -> bool:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def gib(size: float) -> str:
    """Return a number of bytes as `1.5 GiB`."""
    return f"{size / 2**30:.1f} GiB"
