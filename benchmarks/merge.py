"""Merging whole checkpoints: CPU seconds, wall seconds and memory of Skillgraft, mergekit and the bare copying.

    python benchmarks/merge.py --size 1.1b --work /tmp/bench-merge --mergekit /tmp/mk/bin/mergekit-yaml

Makes its own checkpoints (checkpoints.py), then per case and round runs, one after the other and with a warm page
cache: the floor (a small program that reads every byte of the operands and writes as many as the output has),
Skillgraft, and mergekit. Each is a child process; its user and system time and its peak memory are the kernel's, from
wait4. Start-up and imports count; an unmeasured run on tiny checkpoints has compiled the bytecode before. Skillgraft's
first run has an empty cache of fingerprints: what it takes above the median of the rounds is stated apart. Outputs are
compared (agreement.py) and deleted. Prints a table of medians and writes all runs, the machine, versions and the commit
into benchmarks/results/merge-<size>.json.

mergekit's vector methods compute in the dtype of its configuration. Its measured runs use --mergekit-dtype; one more
run in float32, Skillgraft's arithmetic, is for the comparison of outputs. Peak memory counts the pages of mapped files,
which mergekit reads its operands through; the table gives the peak without them after the slash.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import checkpoints
import measure
import yaml
from measure import Run
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
DENSITY = 0.2
FIRST_SKILLGRAFT, FP32_MERGEKIT = "skillgraft, empty cache", "mergekit in float32"
# On idle cores mergekit's own flags were its fastest, in CPU and in wall seconds. --num-threads 1 costs fewer CPU
# seconds only where other work keeps the cores busy; --async-write and --low-cpu-memory changed nothing on a CPU.
MERGEKIT_ARGS_HELP = "more arguments for mergekit, in one string; given again, further runs; default: none"
WARM_UP_SIZE = "tiny"
COLD = 0.02  # a run that took this part of its operands from the disk is pointed out


@dataclass(frozen=True)
class Case:
    """One merge: the folders that it reads, and the recipe of each program."""

    operands: tuple[str, ...]
    recipe: Callable[[Path], dict[str, Any]] | None  # None: `skillgraft inject` of the adapter
    mergekit: Callable[[Path], dict[str, Any]]


def vector_case(method: str, parameters: dict[str, Any] | None = None, scope: str | None = None) -> Case:
    """Base + 0.5·(a − base) + 0.5·(b − base), with what the method does to the differences."""

    def recipe(inputs: Path) -> dict[str, Any]:
        operands = [{"model": str(inputs / name), "weight": 0.5} for name in ("a", "b")]
        content: dict[str, Any] = {"method": method, "base": str(inputs / "base"), "operands": operands}
        settings = {**(parameters or {}), **({"scope": scope} if scope else {})}
        return content | ({"parameters": settings} if settings else {})

    def configuration(inputs: Path) -> dict[str, Any]:
        settings = {"weight": 0.5, **(parameters or {})}
        models = [{"model": str(inputs / name), "parameters": settings} for name in ("a", "b")]
        return {"merge_method": method, "base_model": str(inputs / "base"), "models": models}

    return Case(("base", "a", "b"), recipe, configuration)


def linear_case() -> Case:
    vector = vector_case("linear")

    def configuration(inputs: Path) -> dict[str, Any]:
        # Named as base_model, the donor of config and tokenizer would be a third model of the sum.
        return {key: value for key, value in vector.mergekit(inputs).items() if key != "base_model"}

    return Case(("a", "b"), vector.recipe, configuration)


def lora_case() -> Case:
    def configuration(inputs: Path) -> dict[str, Any]:
        model = f"{inputs / 'base'}+{inputs / checkpoints.ADAPTER}"
        return {"merge_method": "passthrough", "models": [{"model": model}]}

    return Case(("base", checkpoints.ADAPTER), None, configuration)


CASES = {
    "task_arithmetic": vector_case("task_arithmetic"),
    "linear": linear_case(),
    "ties": vector_case("ties", {"density": DENSITY}, scope="tensor"),
    "dare_ties": vector_case("dare_ties", {"density": DENSITY}),
    "lora": lora_case(),
}


@dataclass
class Bench:
    """One session: folders, how programs are started, and the measurements so far."""

    arguments: argparse.Namespace
    size: str
    work: Path
    environment: dict[str, str]
    console: Console
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> checkpoints.Shape:
        return checkpoints.SIZES[self.size]

    @property
    def inputs(self) -> Path:
        return self.work / self.size

    @property
    def out(self) -> Path:
        return self.work / "out"

    @property
    def lora_cache(self) -> Path:
        return self.work / "lora-cache"

    def samples(self, case: str) -> Path:
        return self.work / "samples" / case

    def clean(self) -> None:
        for folder in (self.out, self.lora_cache):
            shutil.rmtree(folder, ignore_errors=True)


def prepare_inputs(bench: Bench) -> None:
    """Check the disk, then make the checkpoints in a process of their own, which may be large."""
    size, seed = bench.size, bench.arguments.seed
    ready = checkpoints.is_ready(bench.inputs, size, seed)
    # At a time there is one output and, where mergekit merges an adapter, its intermediate checkpoint.
    outputs = 2 if "lora" in bench.arguments.cases and not bench.arguments.skip_mergekit else 1
    models = outputs + (0 if ready else len(checkpoints.MODELS))
    needed = models * bench.shape.model_bytes + 2**28
    free = shutil.disk_usage(bench.work).free
    if free < needed:
        raise SystemExit(f"{bench.work} has {free / 1e9:.1f} GB free, expected {needed / 1e9:.1f} GB: choose --work")
    if not ready:
        bench.console.print(f"making checkpoints of size {size} in {bench.inputs}")
        program = str(Path(checkpoints.__file__))
        command = [sys.executable, program, "--size", size, "--seed", str(seed), "--folder", str(bench.inputs)]
        subprocess.run(command, check=True)


def run_floor(bench: Bench, case: Case) -> Run:
    sources = [file for name in case.operands for file in checkpoints.weight_files(bench.inputs / name)]
    return measure.measure_floor(sources, bench.work / "floor", bench.shape.model_bytes, bench.work / "floor.log")


def run_skillgraft(bench: Bench, name: str, case: Case) -> Run:
    command = [sys.executable, "-m", "skillgraft.cli.app"]
    if case.recipe is None:
        target, adapter = bench.inputs / "base", bench.inputs / checkpoints.ADAPTER
        command += ["inject", "--target", str(target), "--skill", str(adapter), "--scale", "1.0"]
    else:
        recipe = bench.work / f"{name}.skillgraft.yaml"
        recipe.write_text(yaml.safe_dump(case.recipe(bench.inputs), sort_keys=False))
        command += ["merge", str(recipe)]
    command += ["-o", str(bench.out), *shlex.split(bench.arguments.skillgraft_args)]
    return measure.measure(command, bench.work / "skillgraft.log", bench.environment)


def run_mergekit(bench: Bench, name: str, case: Case, dtype: str, more: str) -> Run:
    config = case.mergekit(bench.inputs) | {"dtype": dtype, "out_dtype": "bfloat16"}
    file = bench.work / f"{name}.mergekit.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [bench.arguments.mergekit, str(file), str(bench.out), "--no-cuda", "--quiet"]
    command += ["--lora-merge-cache", str(bench.lora_cache), *shlex.split(more)]
    return measure.measure(command, bench.work / "mergekit.log", bench.environment)


def warm_up(bench: Bench) -> None:
    """Run every program once on tiny checkpoints: mistakes show at once, and bytecode is compiled."""
    tiny = replace(bench, size=WARM_UP_SIZE)
    prepare_inputs(tiny)
    for name in bench.arguments.cases:
        for run in programs(tiny, name).values():
            tiny.clean()
            run()
    tiny.clean()


def programs(bench: Bench, name: str) -> dict[str, Callable[[], Run]]:
    """The programs of every round, beside the floor."""
    case, arguments = CASES[name], bench.arguments
    programs: dict[str, Callable[[], Run]] = {}
    if not arguments.skip_skillgraft:
        programs["skillgraft"] = lambda: run_skillgraft(bench, name, case)
    if not arguments.skip_mergekit:
        for number, more in enumerate(arguments.mergekit_args):
            label = "mergekit" if number == 0 else f"mergekit {more or 'without more arguments'}"
            programs[label] = functools.partial(run_mergekit, bench, name, case, arguments.mergekit_dtype, more)
    return programs


def measured(bench: Bench, case: Case, program: str, run: Callable[[], Run], samples: Path | None = None) -> Run:
    """Run one program on warm files; keep samples of its output; delete the output."""
    operands = [file for name in case.operands for file in checkpoints.weight_files(bench.inputs / name)]
    bench.clean()
    measure.settle(bench.arguments.rest)
    measure.warm(operands)
    result = run()
    if samples is not None:
        keep_samples(bench, samples / program)
    bench.clean()
    text = f"  {program}: {result.cpu:.2f} s CPU, {result.wall:.2f} s, {result.max_rss_bytes / 1e6:.0f} MB"
    if result.bytes_from_disk > max(COLD * sum(file.stat().st_size for file in operands), 1e8):
        text += f"; the page cache was not warm: {result.bytes_from_disk / 1e6:.0f} MB came from the disk"
    bench.console.print(text, highlight=False, soft_wrap=True)
    return result


def keep_samples(bench: Bench, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for tensor in bench.shape.sampled_tensors():
        stored = checkpoints.read_raw(bench.out, tensor)
        if stored is None:
            raise SystemExit(f"{bench.out} holds no tensor {tensor}; expected every tensor of the base")
        (folder / f"{tensor}.bin").write_bytes(stored)


def measure_case(bench: Bench, name: str) -> dict[str, Any]:
    case, arguments = CASES[name], bench.arguments
    every_round = programs(bench, name)
    samples = bench.samples(name)
    shutil.rmtree(samples, ignore_errors=True)
    runs: dict[str, list[Run]] = {program: [] for program in ("floor", *every_round)}
    bench.console.print(f"[bold]{name}[/]")
    if "skillgraft" in every_round:
        shutil.rmtree(bench.environment["SKILLGRAFT_CACHE"], ignore_errors=True)
        runs[FIRST_SKILLGRAFT] = [measured(bench, case, FIRST_SKILLGRAFT, every_round["skillgraft"])]
    if "mergekit" in every_round and arguments.mergekit_dtype != "float32" and not arguments.skip_float32:
        fp32 = functools.partial(run_mergekit, bench, name, case, "float32", arguments.mergekit_args[0])
        runs[FP32_MERGEKIT] = [measured(bench, case, FP32_MERGEKIT, fp32, samples)]
    for round_number in range(arguments.rounds):
        runs["floor"].append(measured(bench, case, "floor", lambda: run_floor(bench, case)))
        for program, run in every_round.items():
            runs[program].append(measured(bench, case, program, run, samples if round_number == 0 else None))
    result: dict[str, Any] = {
        "runs": {program: measure.as_rows(rows) for program, rows in runs.items()},
        "medians": {program: measure.summary(rows) for program, rows in runs.items()},
        "agreement": agreement(bench, name),
    }
    if "skillgraft" in every_round:
        first, later = (result["medians"][program]["cpu"] for program in (FIRST_SKILLGRAFT, "skillgraft"))
        result["first_fingerprints_cpu"] = first - later
    return result


def agreement(bench: Bench, name: str) -> dict[str, Any]:
    """The comparison of the sampled outputs, made by another process, which may be large."""
    if not bench.samples(name).is_dir():
        return {}
    program = str(Path(__file__).with_name("agreement.py"))
    command = [sys.executable, program, name, str(bench.samples(name)), str(bench.inputs)]
    compared: dict[str, Any] = json.loads(subprocess.check_output(command, text=True))
    return compared


def show(bench: Bench) -> None:
    table = Table("case", "program", title=f"{bench.size}: medians of {bench.arguments.rounds} rounds")
    for heading in ("CPU s", "wall s", "peak MB / without mapped files", "wall / floor", "CPU / skillgraft"):
        table.add_column(heading, justify="right")
    for name, case in bench.result["cases"].items():
        medians = case["medians"]
        for program, row in medians.items():
            if program in (FIRST_SKILLGRAFT, FP32_MERGEKIT):
                continue
            memory = f"{row['max_rss_bytes'] / 1e6:.0f} / {row['max_anonymous_bytes'] / 1e6:.0f}"
            cells = [f"{row['cpu']:.2f}", f"{row['wall']:.2f}", memory]
            cells.append(f"{row['wall'] / medians['floor']['wall']:.2f}")
            cells.append(f"{row['cpu'] / medians['skillgraft']['cpu']:.2f}" if "skillgraft" in medians else "")
            table.add_row(name if program == "floor" else "", program, *cells)
        table.add_section()
    bench.console.print(table)
    show_notes(bench)


def show_notes(bench: Bench) -> None:
    for name, case in bench.result["cases"].items():
        if "first_fingerprints_cpu" in case:
            seconds = case["first_fingerprints_cpu"]
            bench.console.print(f"{name}: fingerprints, first time: {seconds:.2f} s CPU", highlight=False)
        pairs: dict[str, list[dict[str, float]]] = {}
        for tensor in case["agreement"].values():
            for pair, row in tensor.items():
                pairs.setdefault(pair, []).append(row)
        for pair, rows in pairs.items():
            text = f"{name}: {pair}: at most {max(row['max_abs'] for row in rows):.2g} ("
            text += f"{max(row['max_abs_over_rms'] for row in rows):.2%} of a tensor's rms, "
            text += f"{max(row['max_ulp'] for row in rows)} ulp), in up to "
            text += f"{max(row['share_differing'] for row in rows):.3%} of a tensor"
            if "unexplained" in rows[0]:
                text += f", {sum(row['unexplained'] for row in rows)} elements not by ties at the threshold"
            bench.console.print(text, highlight=False, soft_wrap=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=checkpoints.SIZES, default="1.1b")
    parser.add_argument("--work", type=Path, help="folder for checkpoints and outputs; default: a temporary one")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rest", type=float, default=1.0, help="idle seconds before every run")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of both programs")
    parser.add_argument("--mergekit", default="mergekit-yaml", help="the program of another environment")
    parser.add_argument("--mergekit-dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--mergekit-args", action="append", metavar="STRING", help=MERGEKIT_ARGS_HELP)
    parser.add_argument("--skillgraft-args", default="", help="more arguments for Skillgraft, in one string")
    parser.add_argument("--skip-float32", action="store_true", help="no run of mergekit in float32")
    parser.add_argument("--skip-mergekit", action="store_true")
    parser.add_argument("--skip-skillgraft", action="store_true")
    parser.add_argument("--out", type=Path, help="the JSON; default: benchmarks/results/merge-<size>.json")
    arguments = parser.parse_args()
    arguments.mergekit_args = arguments.mergekit_args or [""]
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not arguments.skip_mergekit:
        executable = shutil.which(arguments.mergekit)
        if executable is None:
            parser.error(f"{arguments.mergekit} was not found; give --mergekit or --skip-mergekit")
        arguments.mergekit = executable
    return arguments


def run(arguments: argparse.Namespace, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    environment = measure.child_environment(work, arguments.threads)
    bench = Bench(arguments, arguments.size, work, environment, Console(width=None if sys.stdout.isatty() else 120))
    versions = {"skillgraft": measure.versions()}
    if not arguments.skip_mergekit:
        versions["mergekit"] = measure.versions(str(Path(arguments.mergekit).with_name("python")))
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    bench.result = {
        "benchmark": "merge",
        "options": options,
        "parameters": bench.shape.parameters,
        "git": measure.git_state(),
        "machine": measure.machine(work),
        "versions": versions,
        "cases": {},
    }
    out = arguments.out or RESULTS / f"merge-{arguments.size}.json"
    try:
        warm_up(bench)
        prepare_inputs(bench)
        for name in arguments.cases:
            bench.result["cases"][name] = measure_case(bench, name)
            measure.write_result(out, bench.result)  # what was measured stays if a later case fails
    except measure.ChildError as error:
        raise SystemExit(str(error)) from error
    finally:
        bench.clean()
    show(bench)
    bench.console.print(f"all runs: {out}", highlight=False)


def main() -> None:
    arguments = parse()
    if arguments.work is not None:
        run(arguments, arguments.work)
        return
    with tempfile.TemporaryDirectory(prefix="bench-merge-") as folder:
        run(arguments, Path(folder))


if __name__ == "__main__":
    main()
