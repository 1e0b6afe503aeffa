"""Planning alone: CPU seconds of `skillgraft merge --dry-run` on many tensors, and of `skillgraft --help`.

    python benchmarks/plan.py --work /tmp/bench-plan

Makes a mixture-of-experts checkpoint of 20,439 tiny tensors (52 layers, 128 experts) in shards and two fine-tunes of
it, and plans one TIES merge. What it costs is start-up, reading headers and checking names and shapes: no weights.
Prints medians and writes benchmarks/results/plan.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import checkpoints
import measure
import yaml
from measure import Run
from rich.console import Console
from rich.table import Table

RESULT = Path(__file__).resolve().parent / "results" / "plan.json"
LAYERS, EXPERTS, HIDDEN, SHARDS = 52, 128, 8, 16
VOCABULARY = 1024


def moe_tensors() -> dict[str, tuple[int, ...]]:
    """Return names and shapes as Qwen3-MoE has them."""
    square = (HIDDEN, HIDDEN)
    named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        named |= {f"{prefix}.{norm}.weight": (HIDDEN,) for norm in ("input_layernorm", "post_attention_layernorm")}
        named |= {f"{prefix}.self_attn.{side}_proj.weight": square for side in "qkvo"}
        named |= {f"{prefix}.self_attn.{side}_norm.weight": (HIDDEN,) for side in "qk"}
        named[f"{prefix}.mlp.gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            stem = f"{prefix}.mlp.experts.{expert}"
            named |= {f"{stem}.{side}_proj.weight": square for side in ("gate", "up", "down")}
    return named | {"model.norm.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}


def write_model(folder: Path, tensors: dict[str, tuple[int, ...]], fill: bytes) -> None:
    """Write a checkpoint whose bf16 elements are all the same."""
    total = sum(2 * checkpoints.elements(shape) for shape in tensors.values())
    shards = checkpoints.split_into_shards(tensors, total // SHARDS)
    folder.mkdir(parents=True)
    for number, shard in enumerate(shards, start=1):
        with open(folder / checkpoints.shard_name(number, len(shards)), "wb") as file:
            checkpoints.write_header(file, shard, "bfloat16")
            file.write(fill * sum(checkpoints.elements(shape) for shape in shard.values()))
    checkpoints.write_index(folder, shards, 2)
    config: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "moe_intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": HIDDEN,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 8,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    # A word per row of the embedding: planning compares tokenizers, and this is the smallest that is one.
    vocabulary = {f"word{number}": number for number in range(VOCABULARY)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "word0"}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def prepare(work: Path) -> Path:
    """Make the models where they aren't there yet, and return a recipe that merges them."""
    folder = work / "moe"
    models = {"base": b"\x80\x3f", "a": b"\x81\x3f", "b": b"\x7f\x3f"}
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        tensors = moe_tensors()
        for name, fill in models.items():
            write_model(folder / name, tensors, fill)
        content = {
            "method": "ties",
            "base": str(folder / "base"),
            "operands": [{"model": str(folder / name), "weight": 0.5} for name in ("a", "b")],
            "parameters": {"density": 0.2, "scope": "tensor"},
        }
        recipe.write_text(yaml.safe_dump(content, sort_keys=False))  # last: says that the rest is complete
    return recipe


def run(arguments: argparse.Namespace, work: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    recipe = prepare(work)
    environment = measure.child_environment(work, None)
    cli, out = [sys.executable, "-m", "skillgraft.cli.app"], str(work / "out")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "skillgraft --help": [*cli, "--help"],
        f"merge --dry-run, {len(moe_tensors())} tensors": [*cli, "merge", str(recipe), "-o", out, "--dry-run"],
    }
    runs: dict[str, list[Run]] = {}
    try:
        for name, command in commands.items():
            measure.measure(command, work / "plan.log", environment)  # compiles bytecode, hashes the inputs
            runs[name] = [measure.measure(command, work / "plan.log", environment) for _ in range(arguments.rounds)]
    except measure.ChildError as error:
        raise SystemExit(str(error)) from error
    medians = {name: measure.summary(rows) for name, rows in runs.items()}
    result = {
        "benchmark": "plan",
        "options": {"rounds": arguments.rounds},
        "git": measure.git_state(),
        "machine": measure.machine(work),
        "versions": measure.versions(),
        "runs": {name: measure.as_rows(rows) for name, rows in runs.items()},
        "medians": medians,
    }
    measure.write_result(arguments.out, result)
    table = Table("command", "CPU s", "wall s", "peak MB", title=f"medians of {arguments.rounds} runs")
    for name, row in medians.items():
        table.add_row(name, f"{row['cpu']:.3f}", f"{row['wall']:.3f}", f"{row['max_rss_bytes'] / 1e6:.0f}")
    console = Console()
    console.print(table)
    console.print(f"all runs: {arguments.out}", highlight=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the checkpoints; default: a temporary one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.work is not None:
        run(arguments, arguments.work)
        return
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as folder:
        run(arguments, Path(folder))


if __name__ == "__main__":
    main()
