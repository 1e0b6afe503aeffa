"""Low-rank packing beside mergekit-extract-lora: seconds, memory and error on the same files at the same rank.

    python benchmarks/pack.py --work /tmp/bench-pack --mergekit path/to/mergekit-extract-lora --layers 2 --full

mergekit takes the full SVD of every matrix. Both tools run on the first `--layers` layers of that model (22 are all),
with a vocabulary of 512 rows, since mergekit copies embeddings and Skillgraft factors them. `--full` then packs the
whole model with Skillgraft alone. Skillgraft works in two steps, `extract` (pair → skill) and `pack`; both are
measured, and the ratios are given with and without the first. Errors are ‖Δ − B·A‖ / ‖Δ‖ in fp64 on every matrix of
the first layer, beside the least possible one (Eckart & Young 1936). The deltas have the spectrum of a real skill;
`--deltas noise` makes them flat, the hardest case for an iteration.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import measure
from measure import Run

RESULTS = Path(__file__).resolve().parent / "results"
SUBSET_VOCABULARY = 512
WARM_UP_SIZE = "tiny"


def subset(layers: int, deltas: str) -> str:
    """Return the name under which a subset of the 1.1 B shape is known to `checkpoints`."""
    name = f"1.1b-{layers}-layers-{deltas}"
    shape = checkpoints.SIZES["1.1b"]
    checkpoints.SIZES[name] = dataclasses.replace(shape, layers=layers, vocab=SUBSET_VOCABULARY, deltas=deltas)
    return name


class Bench:
    """Where things lie and how programs are started."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.work: Path = arguments.work.resolve()
        self.work.mkdir(parents=True, exist_ok=True)
        self.arguments = arguments
        self.environment = measure.child_environment(self.work, arguments.threads)
        self.own_environment = self.environment | {"PYTHONPATH": str(measure.REPOSITORY / "src")}

    def skillgraft(self, *words: object) -> Run:
        command = [sys.executable, "-m", "skillgraft.cli.app", *map(str, words)]
        return measure.measure(command, self.work / "skillgraft.log", self.own_environment)

    def extract(self, size: str) -> Run:
        inputs = self.work / size
        return self.skillgraft("extract", "--rl", inputs / "a", "--sft", inputs / "base", "-o", self.work / "skill")

    def pack(self) -> Run:
        rank = self.arguments.rank
        options = ("--form", "lowrank", "--rank", rank, "-o", self.work / "packed")
        return self.skillgraft("skill", "pack", self.work / "skill", *options)

    def mergekit(self, size: str) -> Run:
        inputs = self.work / size
        command = [self.arguments.mergekit, "--model", inputs / "a", "--base-model", inputs / "base"]
        command += ["--out-path", self.work / "lora", "--max-rank", self.arguments.rank, "--no-cuda", "--quiet"]
        return measure.measure([str(word) for word in command], self.work / "mergekit.log", self.environment)

    def clean(self, *names: str) -> None:
        for name in names:
            shutil.rmtree(self.work / name, ignore_errors=True)

    def measured(self, size: str, label: str, out: str, run: Callable[[], Run]) -> Run:
        self.clean(out)
        measure.settle(self.arguments.rest)
        measure.warm(file for name in ("base", "a") for file in checkpoints.weight_files(self.work / size / name))
        found = run()
        print(f"  {label}: {found.cpu:.1f} s CPU, {found.wall:.1f} s, {found.max_rss_bytes / 1e6:.0f} MB", flush=True)
        return found


def measure_subset(bench: Bench, size: str) -> dict[str, Any]:
    runs: dict[str, list[Run]] = {"extract": [], "pack": []}
    for _ in range(bench.arguments.rounds):
        runs["extract"].append(bench.measured(size, "skillgraft extract", "skill", lambda: bench.extract(size)))
        runs["pack"].append(bench.measured(size, "skillgraft skill pack", "packed", bench.pack))
    result: dict[str, Any] = {}
    if bench.arguments.mergekit:
        runs["mergekit"] = [bench.measured(size, "mergekit-extract-lora", "lora", lambda: bench.mergekit(size))]
    result["runs"] = {program: measure.as_rows(rows) for program, rows in runs.items()}
    medians = {program: measure.summary(rows) for program, rows in runs.items()}
    result["medians"] = medians
    if bench.arguments.mergekit:
        for key in ("wall", "cpu"):
            theirs, ours = medians["mergekit"][key], medians["pack"][key]
            result[f"{key}_ratio_of_pack"] = theirs / ours
            result[f"{key}_ratio_of_extract_and_pack"] = theirs / (ours + medians["extract"][key])
    command = [sys.executable, __file__, "--errors", str(bench.work), size, str(bench.arguments.rank)]
    result["errors"] = json.loads(subprocess.check_output(command, text=True, env=bench.own_environment))
    return result


def errors(work: Path, size: str, rank: int) -> dict[str, dict[str, float]]:
    """Return by matrix of the first layer the relative error of both tools and of the best approximation, in fp64."""
    import torch

    from skillgraft.checkpoint.header import read_header
    from skillgraft.checkpoint.tensor_io import read_tensor
    from skillgraft.skills.skill import load_skill

    def tensors(folder: Path) -> dict[str, Any]:
        return {info.name: info for file in checkpoints.weight_files(folder) for info in read_header(file).tensors}

    base, tuned = tensors(work / size / "base"), tensors(work / size / "a")
    packed = load_skill(work / "packed")
    lora, scaling = {}, 0.0
    if (work / "lora").is_dir():
        lora = tensors(work / "lora")
        config = json.loads((work / "lora" / "adapter_config.json").read_text())
        scaling = config["lora_alpha"] / config["r"]
    found = {}
    for module in checkpoints.SIZES["1.1b"].projections():
        name = f"model.layers.0.{module}.weight"
        delta = read_tensor(tuned[name]).double() - read_tensor(base[name]).double()
        whole = delta.norm().item()
        a, b = packed.product(name)
        energies = torch.linalg.eigvalsh(delta @ delta.T if len(delta) < delta.shape[1] else delta.T @ delta)
        row = {
            "skillgraft": (delta - b.double() @ a.double()).norm().item() / whole,
            "least_possible": energies[: len(energies) - rank].clamp(min=0).sum().sqrt().item() / whole,
        }
        prefix = f"base_model.model.model.layers.0.{module}.lora_"
        if lora:
            theirs = read_tensor(lora[f"{prefix}B.weight"]).double() @ read_tensor(lora[f"{prefix}A.weight"]).double()
            row["mergekit"] = (delta - scaling * theirs).norm().item() / whole
        found[name] = row
    return found


def run(arguments: argparse.Namespace) -> None:
    bench = Bench(arguments)
    size = subset(arguments.layers, arguments.deltas)
    for made in (WARM_UP_SIZE, size, *(["1.1b"] if arguments.full else [])):
        checkpoints.make(bench.work / made, made, arguments.seed)
    versions = {"skillgraft": measure.versions()}
    if arguments.mergekit:
        versions["mergekit"] = measure.versions(str(Path(arguments.mergekit).with_name("python")))
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    result: dict[str, Any] = {
        "benchmark": "pack",
        "options": options,
        "git": measure.git_state(),
        "machine": measure.machine(bench.work),
        "versions": versions,
    }
    try:
        bench.clean("skill", "packed", "lora")
        bench.extract(WARM_UP_SIZE)
        bench.pack()
        if arguments.mergekit:
            bench.mergekit(WARM_UP_SIZE)
        print(f"subset of {arguments.layers} layers, rank {arguments.rank}", flush=True)
        result["subset"] = measure_subset(bench, size)
        for name, row in result["subset"]["errors"].items():
            print(f"  {name}: " + ", ".join(f"{key} {value:.7f}" for key, value in row.items()))
        measure.write_result(arguments.out, result)
        if arguments.full:
            print("1.1 billion parameters, Skillgraft alone", flush=True)
            extracted = bench.measured("1.1b", "skillgraft extract", "skill", lambda: bench.extract("1.1b"))
            packed = bench.measured("1.1b", "skillgraft skill pack", "packed", bench.pack)
            result["full"] = {
                "parameters": checkpoints.SIZES["1.1b"].parameters,
                "runs": {"extract": measure.as_rows([extracted]), "pack": measure.as_rows([packed])},
                "packed_bytes": sum(file.stat().st_size for file in (bench.work / "packed").iterdir()),
            }
            measure.write_result(arguments.out, result)
    except measure.ChildError as error:
        raise SystemExit(str(error)) from error
    finally:
        bench.clean("skill", "packed", "lora")
    for key, value in result["subset"].items():
        if "ratio" in key:
            print(f"{key}: {value:.1f}")


def main() -> None:
    if sys.argv[1:2] == ["--errors"]:
        work, size, rank = sys.argv[2:]
        print(json.dumps(errors(Path(work), size, int(rank))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and outputs")
    parser.add_argument("--layers", type=int, default=2, help="layers of the subset on which both tools run")
    parser.add_argument("--deltas", choices=["rl", "noise"], default="rl", help="spectrum of what is packed")
    parser.add_argument("--full", action="store_true", help="pack all 1.1 billion parameters with Skillgraft too")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1, help="runs of Skillgraft; mergekit runs once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rest", type=float, default=1.0, help="idle seconds before every run")
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of both programs")
    parser.add_argument("--mergekit", help="mergekit-extract-lora of another environment; without it, Skillgraft alone")
    parser.add_argument("--out", type=Path, default=RESULTS / "pack-1.1b.json", help="the JSON")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
