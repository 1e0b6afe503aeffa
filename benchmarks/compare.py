"""Comparing whole checkpoints: wall seconds and memory of `skillgraft compare`, beside plainly reading the same bytes.

    python benchmarks/compare.py --size 1.1b --work /tmp/bench-compare

Makes a base and two fine-tunes of it (checkpoints.py), then per round, one after the other and with a warm page cache:
a small program that reads every byte of the three once, and `skillgraft compare a b --base base` without spectra. Each
is a child process; start-up and imports count, an unmeasured run on tiny checkpoints has compiled everything before.
Writes all runs, the machine, versions and the commit into benchmarks/results/compare-<size>.json; exit code 1 where
the peak or the ratio is beyond its bound.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import checkpoints
import measure
from measure import Run
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
MOST_BYTES, MOST_RATIO = 400e6, 4.0
READ, COMPARE = "reading", "skillgraft compare"

# Reads every byte of its arguments once into one small buffer.
READ_PROGRAM = """
import sys
buffer = bytearray(1 << 20)
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
"""


def command(folder: Path, threads: int | None) -> list[str]:
    words = ["compare", str(folder / "a"), str(folder / "b"), "--base", str(folder / "base"), "--json"]
    return [sys.executable, "-m", "skillgraft", *words, *(["--threads", str(threads)] if threads else [])]


def run(arguments: argparse.Namespace, work: Path) -> bool:
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    for size in ("tiny", arguments.size):
        checkpoints.make(work / size, size, arguments.seed)
    folder, log = work / arguments.size, work / "compare.log"
    files = sorted(file for name in checkpoints.MODELS for file in (folder / name).glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    environment = measure.child_environment(work, None)
    reading = [sys.executable, "-S", "-E", "-c", READ_PROGRAM, *map(str, files)]
    runs: dict[str, list[Run]] = {READ: [], COMPARE: []}
    try:
        measure.measure(command(work / "tiny", arguments.threads), log, environment)
        measure.warm(files)
        for _ in range(arguments.rounds):
            runs[READ].append(measure.measure(reading, log))
            runs[COMPARE].append(measure.measure(command(folder, arguments.threads), log, environment))
    except measure.ChildError as error:
        raise SystemExit(str(error)) from error
    medians = {name: measure.summary(rows) for name, rows in runs.items()}
    ratio = medians[COMPARE]["wall"] / medians[READ]["wall"]
    peak = max(row.max_rss_bytes for row in runs[COMPARE])
    result = {
        "benchmark": "compare",
        "options": {"size": arguments.size, "rounds": arguments.rounds, "threads": arguments.threads},
        "bounds": {"max_rss_bytes": MOST_BYTES, "wall_over_reading": MOST_RATIO},
        "bytes": total,
        "wall_over_reading": ratio,
        "max_rss_bytes": peak,
        "git": measure.git_state(),
        "machine": measure.machine(work),
        "versions": measure.versions(),
        "runs": {name: measure.as_rows(rows) for name, rows in runs.items()},
        "medians": medians,
    }
    measure.write_result(arguments.out or RESULTS / f"compare-{arguments.size}.json", result)
    title = f"three checkpoints of {arguments.size}, {total / 1e9:.1f} GB, medians of {arguments.rounds} rounds"
    table = Table("program", "wall s", "CPU s", "peak MB", "load before", title=title)
    for name, row in medians.items():
        cells = (f"{row['wall']:.2f}", f"{row['cpu']:.2f}", f"{row['max_rss_bytes'] / 1e6:.0f}")
        table.add_row(name, *cells, f"{row['load_before']:.1f}")
    console = Console()
    console.print(table)
    console.print(f"{ratio:.2f} times the reading (at most {MOST_RATIO:g}), peak {peak / 1e6:.0f} MB (at most 400)")
    return bool(ratio <= MOST_RATIO and peak <= MOST_BYTES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(checkpoints.SIZES), default="1.1b")
    parser.add_argument("--work", type=Path, help="folder for the checkpoints; default: a temporary one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.work is not None:
        within = run(arguments, arguments.work)
    else:
        with tempfile.TemporaryDirectory(prefix="bench-compare-") as folder:
            within = run(arguments, Path(folder))
    raise SystemExit(0 if within else 1)


if __name__ == "__main__":
    main()
