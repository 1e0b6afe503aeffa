"""Generation on the CPU beside plain Transformers: tokens/s at batches of 1, 8 and 64, and how far from the limits.

    python benchmarks/generate.py --work DIR                                   # the default model, 135 M
    python benchmarks/generate.py --work DIR --model model.gguf --name qwen-0.5b

Each side runs in a process of its own, one after the other, --rounds times: `transformers` is `generate` on left-padded
batches; `skillgraft` is `models.decoding.sample`. Both get the same prompts, the same weights in bf16 where the CPU has
it, and take the likeliest token. Two kinds of work:

fixed: --prompts questions of the almanac, each answered with exactly 32 tokens, so that no row ends early
ends: the same questions with up to 32 tokens until the model ends, as an evaluation asks them

Limits for a batch of B rows: `bytes`, the weights read once a step at the bandwidth of a copy; `flops`, 2 · weights a
token at the rate of a bf16 product of 256 x 2048 by 2048 x 2048, both measured in the same process. Writes
results/generate-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import measure

RESULTS = Path(__file__).resolve().parent / "results"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTIONS = measure.REPOSITORY / "examples" / "almanac" / "target" / "questions.jsonl"
LENGTH = 32
SIDES = ("transformers", "skillgraft")


def limits(parameters: int, batch: int) -> dict[str, float]:
    """Return tokens/s at the bandwidth of a copy and at the rate of a product, both measured now."""
    import torch

    source, target = (torch.ones(1 << 26, dtype=torch.bfloat16) for _ in range(2))
    a, b = torch.ones(256, 2048, dtype=torch.bfloat16), torch.ones(2048, 2048, dtype=torch.bfloat16)
    seconds: dict[str, list[float]] = {"copy": [], "product": []}
    for _ in range(20):
        start = time.perf_counter()
        target.copy_(source)
        seconds["copy"].append(time.perf_counter() - start)
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        seconds["product"].append(time.perf_counter() - start)
    bandwidth = 2 * source.nbytes / min(seconds["copy"])
    rate = 2 * 256 * 2048 * 2048 / min(seconds["product"])
    return {
        "bytes_per_second": bandwidth,
        "flops_per_second": rate,
        "tokens_per_second_by_bytes": batch * bandwidth / (2 * parameters),
        "tokens_per_second_by_flops": rate / (2 * parameters),
    }


def child(spec: dict[str, Any]) -> dict[str, Any]:
    """Generate as one side; return tokens, seconds, and the limits measured beside."""
    import torch

    from skillgraft.checkpoint.default_model import resolve_base
    from skillgraft.data.tasks import read_questions
    from skillgraft.models.answering import batches, load
    from skillgraft.models.decoding.sampling import sample
    from skillgraft.models.generation import end_tokens, generate
    from skillgraft.models.loading import count_parameters
    from skillgraft.models.prompts import as_prompt, encode_prompts, prompt_ids

    model, tokenizer = load(resolve_base(spec["model"]))
    prompts = [as_prompt(tokenizer, q.question) for q in read_questions(QUESTIONS)[: spec["prompts"]]]
    ids, ends = prompt_ids(tokenizer, prompts), end_tokens(model, tokenizer)
    fixed, batch = spec["work"] == "fixed", spec["batch"]
    made: list[list[int]] = [[] for _ in ids]
    start = time.perf_counter()
    if spec["side"] == "skillgraft":
        made = sample(model, ids, [] if fixed else ends, LENGTH, None, at_once=batch)
    else:
        for rows in batches([len(row) for row in ids], batch):
            output = generate(
                model,
                tokenizer,
                encode_prompts(tokenizer, [prompts[row] for row in rows]),
                max_new_tokens=LENGTH,
                do_sample=False,
                **({"min_new_tokens": LENGTH} if fixed else {}),
            )
            for row, tokens in zip(rows, output.tolist(), strict=True):
                stop = next((n + 1 for n, token in enumerate(tokens) if token in ends), len(tokens))
                made[row] = tokens if fixed else tokens[:stop]
    seconds = time.perf_counter() - start
    parameters = count_parameters(model)
    return {
        "seconds": seconds,
        "tokens": sum(map(len, made)),
        "prompt_tokens": sum(map(len, ids)),
        "parameters": parameters,
        "dtype": str(model.dtype),
        "made": made,
        **limits(parameters, batch),
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--name", default="135m")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(json.loads(arguments.child))))
        return 0
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for work in ("fixed", "ends"):
        for batch in arguments.batches:
            prompts = arguments.prompts if batch > 1 else max(4, arguments.prompts // 16)
            sides: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for _ in range(arguments.rounds):
                for side in SIDES:
                    spec = {"model": arguments.model, "side": side, "batch": batch, "prompts": prompts, "work": work}
                    log = arguments.work / f"{arguments.name}-{work}-{batch}-{side}.log"
                    command = [sys.executable, __file__, "--work", str(arguments.work), "--child", json.dumps(spec)]
                    run = measure.measure(command, log)
                    record = json.loads(log.read_text().splitlines()[-1])
                    record |= {"max_anonymous_bytes": run.max_anonymous_bytes, "load": run.load_before}
                    sides[side].append(record)
            rows.append(summary(work, batch, prompts, sides))
            print(json.dumps(rows[-1]), flush=True)
    content = {"model": arguments.name, "length": LENGTH, "rounds": arguments.rounds, "rows": rows}
    content |= {"machine": measure.machine(arguments.work), "versions": measure.versions(), "git": measure.git_state()}
    measure.write_result(RESULTS / f"generate-{arguments.name}.json", content)
    return 0


def summary(work: str, batch: int, prompts: int, sides: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return medians of each side, their ratio, agreement of the tokens, and the share of the nearer limit."""
    speed = {side: statistics.median(r["tokens"] / r["seconds"] for r in records) for side, records in sides.items()}
    ours, theirs = sides["skillgraft"][0], sides["transformers"][0]
    pairs = zip(ours["made"], theirs["made"], strict=True)
    same = [a == b for mine, other in pairs for a, b in zip(mine, other, strict=False)]
    by_bytes, by_flops = (
        statistics.median(r[key] for r in sides["skillgraft"])
        for key in ("tokens_per_second_by_bytes", "tokens_per_second_by_flops")
    )
    return {
        "work": work,
        "batch": batch,
        "prompts": prompts,
        "tokens": {side: records[0]["tokens"] for side, records in sides.items()},
        "prompt_tokens": ours["prompt_tokens"],
        "dtype": ours["dtype"],
        "tokens_per_second": speed,
        "seconds": {side: [round(r["seconds"], 3) for r in records] for side, records in sides.items()},
        "ratio": speed["skillgraft"] / speed["transformers"],
        "limit_by_bytes": by_bytes,
        "limit_by_flops": by_flops,
        "share_of_the_nearer_limit": speed["skillgraft"] / min(by_bytes, by_flops),
        "tokens_that_agree": sum(same) / len(same),
        "peak_bytes": {side: max(r["max_anonymous_bytes"] for r in records) for side, records in sides.items()},
        "load_before": {side: [r["load"] for r in records] for side, records in sides.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
