"""Measure child processes, and say on which machine and with which versions. Needs only the standard library."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
# Starts the command (arguments: the log, the command) and prints what the kernel says it used. A process of its own,
# because Linux counts the memory of the process that forks as the child's first peak. Memory that isn't mapped from
# files is sampled, as the kernel keeps no peak of it.
LAUNCHER = """
import json, os, sys, threading, time
log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
start = time.perf_counter()
redirect = [(os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, file_actions=redirect)
peak = 0
def sample():
    global peak
    while True:
        try:
            with open(f"/proc/{child}/status") as file:
                peak = max([peak] + [int(line.split()[1]) for line in file if line.startswith("RssAnon")])
        except OSError:
            return
        time.sleep(0.05)
threading.Thread(target=sample, daemon=True).start()
_, status, usage = os.wait4(child, 0)
wall = time.perf_counter() - start
print(json.dumps({"code": os.waitstatus_to_exitcode(status), "wall": wall, "user": usage.ru_utime,
    "system": usage.ru_stime, "max_rss_bytes": usage.ru_maxrss * 1024, "max_anonymous_bytes": peak * 1024,
    "bytes_from_disk": usage.ru_inblock * 512}))
"""

PACKAGES = ("skillgraft", "mergekit", "torch", "transformers", "peft", "safetensors", "numpy", "blake3")
CHUNK = 1 << 20

# Reads every byte of the operands and writes as many as the output has: what no merge can do without. Arguments: the
# output, its size, the operands.
FLOOR_PROGRAM = """
import os, sys
out, size, sources = sys.argv[1], int(sys.argv[2]), [os.open(path, os.O_RDONLY) for path in sys.argv[3:]]
target = os.open(out, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
os.posix_fallocate(target, 0, size)
buffer = memoryview(bytearray(1 << 20))
position = 0
while sources or position < size:
    sources = [source for source in sources if os.preadv(source, [buffer], position) > 0]
    if position < size:
        os.pwrite(target, buffer[: size - position], position)
    position += len(buffer)
os.close(target)
"""


@dataclass(frozen=True)
class Run:
    """One child process: seconds, peak memory, and what could have disturbed it."""

    wall: float
    user: float
    system: float
    max_rss_bytes: int  # with the pages of mapped files
    max_anonymous_bytes: int  # without them; sampled every 50 ms
    bytes_from_disk: int  # 0 with a warm page cache
    load_before: float  # runnable processes over the last minute, before the start

    @property
    def cpu(self) -> float:
        return self.user + self.system


class ChildError(Exception):
    """A measured command failed."""


def measure(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Run:
    """Run `command` to its end, its output into `log`, and return what it used. Raises `ChildError`."""
    load = os.getloadavg()[0]
    launcher = [sys.executable, "-S", "-E", "-c", LAUNCHER, str(log), *command]
    used = json.loads(subprocess.check_output(launcher, env=environment, text=True))
    if used.pop("code") != 0:
        tail = log.read_text(errors="replace")[-2000:]
        raise ChildError(f"{' '.join(command)} failed:\n{tail}")
    return Run(**used, load_before=load)


def measure_floor(sources: Iterable[Path], out: Path, size: int, log: Path) -> Run:
    """Measure reading all bytes of `sources` and writing `size` bytes, which are deleted again."""
    command = [sys.executable, "-S", "-E", "-c", FLOOR_PROGRAM, str(out), str(size), *map(str, sources)]
    try:
        return measure(command, log)
    finally:
        out.unlink(missing_ok=True)


def warm(files: Iterable[Path]) -> None:
    """Read the files once, so that they lie in the page cache."""
    buffer = bytearray(CHUNK)
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def settle(seconds: float = 0.0) -> None:
    """Write what is waiting to be written, so that one run's output doesn't burden the next."""
    os.sync()
    time.sleep(seconds)


def summary(runs: Sequence[Run]) -> dict[str, float]:
    """The median of every measured quantity."""
    rows = [{**asdict(run), "cpu": run.cpu} for run in runs]
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}


def as_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [{**asdict(run), "cpu": run.cpu} for run in runs]


def child_environment(work: Path, threads: int | None) -> dict[str, str]:
    """The environment of every measured program: offline, with its own caches of bytecode and fingerprints."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    kept |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    kept |= {"PYTHONPYCACHEPREFIX": str(work / "bytecode"), "SKILLGRAFT_CACHE": str(work / "cache")}
    if threads is not None:
        kept |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return kept


def machine(folder: Path) -> dict[str, Any]:
    information = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    models = [line.partition(":")[2].strip() for line in information.splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "free_disk_bytes": shutil.disk_usage(folder).free,
        "load": os.getloadavg(),
    }


def versions(python: str | None = None) -> dict[str, str]:
    """The versions of the packages that matter, in this environment or in that of another interpreter."""
    if python is None:
        found = {"python": platform.python_version()}
        for package in PACKAGES:
            try:
                found[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found
    program = f"import sys, json; sys.path.insert(0, {str(REPOSITORY / 'benchmarks')!r}); import measure; "
    program += "print(json.dumps(measure.versions()))"
    result: dict[str, str] = json.loads(subprocess.check_output([python, "-c", program], text=True))
    return result


def git_state() -> dict[str, Any]:
    def git(*words: str) -> str:
        return subprocess.check_output(["git", "-C", str(REPOSITORY), *words], text=True).rstrip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": git("status", "--short").splitlines()}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "changed_files": []}


def write_result(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(file)
