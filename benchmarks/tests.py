"""The test commands themselves: wall and CPU seconds of `make check` and `make test` in a clean clone.

    python benchmarks/tests.py --times 3

Clones the repository's HEAD into a temporary folder, installs it there (timed apart), and runs each command several
times; the caches that the commands leave beside the code (mypy's, ruff's, byte code, compiled kernels) are removed
before each, so that every time is the first one. Prints medians and writes benchmarks/results/tests.json.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
from rich.console import Console
from rich.table import Table

RESULT = Path(__file__).resolve().parent / "results" / "tests.json"
CAPS = {"check": 90, "test": 240}
"""Target of the Makefile -> wall seconds that it is meant to take at most on two idle cores."""
CACHES = (".mypy_cache", ".ruff_cache", ".pytest_cache")
COUNTS = re.compile(r"(\d+) (passed|failed|skipped|deselected|errors?)")


def clone(folder: Path) -> str:
    """Clone HEAD and return its hash."""
    subprocess.run(
        ["git", "-c", "advice.detachedHead=false", "clone", "--quiet", str(measure.REPOSITORY), str(folder)], check=True
    )
    return subprocess.check_output(["git", "-C", str(folder), "rev-parse", "HEAD"], text=True).strip()


def forget(folder: Path) -> None:
    """Remove what an earlier command has left beside the code."""
    for name in CACHES:
        shutil.rmtree(folder / name, ignore_errors=True)
    for part in ("src", "tests"):
        for cache in (folder / part).rglob("__pycache__"):
            shutil.rmtree(cache)


def environment(work: Path) -> dict[str, str]:
    """The environment of a user who has just cloned: nothing of this Python's, caches of one's own."""
    dropped = ("PYTHON", "SKILLGRAFT_", "VIRTUAL_ENV", "OMP_", "MKL_", "PYTEST_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    return {**kept, "SKILLGRAFT_CACHE": str(work / "cache")}


def counts(log: Path) -> dict[str, int]:
    """How many tests passed, failed and so on, as pytest's last line says."""
    said = [line for line in log.read_text(errors="replace").splitlines() if " passed" in line]
    return {name: int(number) for number, name in COUNTS.findall(said[-1])} if said else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3, help="runs of each command")
    parser.add_argument("--only", choices=sorted(CAPS), action="append", help="this command alone")
    parser.add_argument("--work", type=Path, default=None, help="folder for the clone (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        work = Path(folder)
        tree = work / "skillgraft"
        commit = clone(tree)
        make = ["make", "-C", str(tree), f"PYTHON={sys.executable}"]
        installed = measure.measure([*make, "install"], work / "install.log", environment(work))
        found: dict[str, Any] = {}
        for target in asked.only or list(CAPS):
            runs, log = [], work / f"{target}.log"
            for _ in range(asked.times):
                forget(tree)
                measure.settle()
                runs.append(measure.measure([*make, target], log, environment(work)))
            found[target] = {
                "cap_seconds": CAPS[target],
                "median": measure.summary(runs),
                "tests": counts(log),
                "runs": measure.as_rows(runs),
            }
        result = {
            "benchmark": "tests",
            "options": {"times": asked.times},
            "git": {"commit": commit, "changed_files": []},
            "machine": measure.machine(work),
            "versions": measure.versions(str(tree / ".venv" / "bin" / "python")),
            "install": measure.as_rows([installed])[0],
            "commands": found,
        }
    measure.write_result(asked.out, result)
    show(found)


def show(found: dict[str, Any]) -> None:
    table = Table("command", "wall s", "CPU s", "at most", "tests")
    for target, each in found.items():
        median = each["median"]
        told = ", ".join(f"{number} {name}" for name, number in each["tests"].items())
        table.add_row(f"make {target}", f"{median['wall']:.0f}", f"{median['cpu']:.0f}", str(each["cap_seconds"]), told)
    Console().print(table)


if __name__ == "__main__":
    main()
