"""`skillgraft doctor`: checks of this machine and this installation, what each result means, and the remedy.

A check is a pure function of facts collected beforehand; it returns findings. A check that fails is a finding too,
never a traceback. Torch and Numba are probed in processes of their own, since a broken one may end the process that
imports it. Nothing is changed, and no network is reached.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from skillgraft.doctor import files, models, network, processor, software
from skillgraft.doctor.findings import EXIT_CODES, Finding, worst
from skillgraft.support import resources

__all__ = ["EXIT_CODES", "Finding", "examine", "worst"]

Check = Callable[[], list[Finding]]


def examine(runs: Path) -> list[Finding]:
    """Return the findings of every check; `runs` is where runs would be kept."""
    return run_checks(checks(runs, dict(os.environ)))


def checks(runs: Path, environ: Mapping[str, str]) -> dict[str, Check]:
    """Return every check by name, in the order in which they are shown."""
    torch = functools.cache(lambda: processor.probe("torch"))
    return {
        "python": lambda: software.check_python(sys.version_info[:3], software.installed()),
        "packages": lambda: software.check_packages(software.installed()),
        "optional parts": lambda: software.check_extras(software.installed()),
        "torch": lambda: processor.check_torch(torch()),
        "precision": lambda: processor.check_precision(torch()),
        "devices": lambda: processor.check_devices(torch(), processor.nvidia_driver(), resources.cpu_features()),
        "threads": lambda: processor.check_threads(resources.cores(), torch().get("threads"), environ),
        "compiled arithmetic": lambda: processor.check_numba(processor.probe("numba")),
        "memory": lambda: files.check_memory(resources.memory()),
        "disk": lambda: files.check_disk(files.inspect_disks(runs)),
        "files": lambda: files.check_files(files.inspect_files(runs)),
        "text": lambda: files.check_text(files.inspect_text()),
        "model": lambda: models.check_default_model(models.inspect_default_model()),
        "hub cache": lambda: models.check_hub_cache(models.inspect_hub_cache(environ)),
        "skills": lambda: models.check_skills(models.inspect_skills()),
        "network": lambda: network.check_network(environ),
        "extensions": lambda: software.check_extensions(),
        "telemetry": lambda: network.check_telemetry(environ),
    }


def run_checks(named: Mapping[str, Check]) -> list[Finding]:
    """Return all findings in order; a check that raises becomes a warning."""
    findings: list[Finding] = []
    for name, check in named.items():
        try:
            findings += check()
        except Exception as error:  # a broken installation can raise anything; the other checks still run
            findings.append(_failed(name, error))
    return findings


def _failed(name: str, error: Exception) -> Finding:
    what = str(error).strip().splitlines()
    lacking = isinstance(error, ImportError)
    return Finding(
        name,
        "warning",
        f"the check itself failed: {type(error).__name__}{': ' + what[0] if what else ''}",
        "nothing is known about this point",
        "install Skillgraft again" if lacking else "report it, with the output of skillgraft doctor --json",
    )
