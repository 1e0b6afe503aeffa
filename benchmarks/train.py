"""Training beside plain TRL: tokens/s of SFT on ragged passages, steps/s of GRPO, and whether both learn the same.

    python benchmarks/train.py sft --documents data/squad/source --work DIR
    python benchmarks/train.py grpo --questions data/squad/source/questions.jsonl --work DIR
    python benchmarks/train.py grpo-lora --questions data/squad/source/questions.jsonl --work DIR

Each round runs every side once, one after the other, in processes of their own: same model, data, order, batch, seed
and precision (bf16 autocast over fp32 weights where the CPU has bf16). `trl` is `SFTTrainer` or `GRPOTrainer` with its
own defaults; `trl-no-checkpointing` the same without recomputing activations, as Skillgraft trains; further sides leave
one of Skillgraft's parts out. In GRPO the TRL sides have a hook against a defect of Torch 2.13 that makes them several
times slower still (see `contiguous_head`); `trl-plain` is TRL without it and runs only when asked for with --sides.
Seconds are those between two logged steps, the first `WARM` left out.

SFT: losses must agree step by step. GRPO draws other tokens from the same distribution, so `agree` gives both trainers
the same answers and compares loss and gradient, also with the gradient in fp32.

What was measured is kept in --work: the same command with more --rounds goes on. Writes results/train-TASK.json; exit
code 1 where a goal or a tolerance is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import measure

RESULTS = Path(__file__).resolve().parent / "results"
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
WARM = 2
GOAL = 1.5
LOSS_TOLERANCE = 0.01
GRADIENT_TOLERANCE = 1.5
"""How many times TRL's own distance from the fp32 gradient ours may have."""
SIDES = {
    "sft": ["trl", "trl-no-checkpointing", "skillgraft", "skillgraft-padded", "skillgraft-trl-head"],
    "grpo": ["trl", "trl-no-checkpointing", "skillgraft"],
    "grpo-lora": ["trl", "trl-no-checkpointing", "skillgraft"],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"per_device_train_batch_size": 8, "learning_rate": 2e-5},
    "grpo": {"per_device_train_batch_size": 64, "num_generations": 8, "max_completion_length": 32},
}
SETTINGS["grpo"] |= {"learning_rate": 1e-6, "scale_rewards": "group", "temperature": 1.0}
SETTINGS["grpo-lora"] = SETTINGS["grpo"]
SAME = {"lr_scheduler_type": "constant", "warmup_steps": 0, "logging_steps": 1}
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}


def reward(completions: list[Any], answers: list[list[str]], **_: Any) -> list[float]:
    from skillgraft.domains.rewards import get_reward

    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [get_reward("f1")(text.strip(), gold) for text, gold in zip(texts, answers, strict=True)]


def contiguous_head(model: Any) -> None:
    """Spare TRL what Torch 2.13 takes for a strided bf16 product on the CPU: seconds a token, not milliseconds."""
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(), *inputs[1:]))


def rows(spec: dict[str, Any], tokenizer: Any) -> list[dict[str, Any]]:
    from skillgraft.data.documents import read_documents
    from skillgraft.data.tasks import read_questions
    from skillgraft.models.prompts import as_prompt

    if spec["task"] == "sft":
        documents = read_documents(Path(spec["documents"]))
        return [{"text": document.rendered() + tokenizer.eos_token} for document in documents]
    questions = read_questions(Path(spec["questions"]))
    return [{"prompt": as_prompt(tokenizer, q.question), "answers": list(q.answers)} for q in questions]


def trl_trainer(spec: dict[str, Any], **more: Any) -> Any:
    """TRL's trainer as its documentation has it, with the settings of the task."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    given = {**SETTINGS[spec["task"]], **SAME, "max_steps": spec["steps"], "seed": spec["seed"], "use_cpu": True}
    given |= {"output_dir": spec["out"], "report_to": "none", "save_strategy": "no", "disable_tqdm": True, **more}
    data = Dataset.from_list(rows(spec, tokenizer))
    if spec["task"] == "sft":
        return SFTTrainer(model, SFTConfig(**given), train_dataset=data, processing_class=tokenizer)
    if spec["side"] != "trl-plain":
        contiguous_head(model)
    lora = LoraConfig(task_type="CAUSAL_LM", **LORA) if spec["task"] == "grpo-lora" else None
    return GRPOTrainer(
        model, reward, GRPOConfig(**given), train_dataset=data, processing_class=tokenizer, peft_config=lora
    )


def run_trl(spec: dict[str, Any], log: Any) -> None:
    from transformers import TrainerCallback

    class Logged(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            log(state.global_step, 0, logs)

    trainer = trl_trainer(spec, **({"gradient_checkpointing": False} if "no-checkpointing" in spec["side"] else {}))
    trainer.add_callback(Logged())
    trainer.train()


def run_skillgraft(spec: dict[str, Any], log: Any) -> None:
    from skillgraft.data.documents import read_documents
    from skillgraft.data.tasks import read_questions
    from skillgraft.train import sft
    from skillgraft.train.rl import train_rl

    out = Path(spec["out"])
    (out / "out").mkdir(parents=True)
    more: dict[str, Any] = {"trainer": {**SETTINGS[spec["task"]], **SAME, "max_steps": spec["steps"]}}
    more |= {"seed": spec["seed"], "checkpoint_seconds": 1e9, "progress": log}
    model = Path(spec["model"])
    if spec["task"] == "sft":
        part = "ragged_batches" if spec["side"] == "skillgraft-padded" else "fast_head"
        nothing = mock.patch.object(sft, part, return_value=contextlib.nullcontext())
        with nothing if spec["side"] != "skillgraft" else contextlib.nullcontext():
            sft.train_sft(model, out / "out", out, documents=read_documents(Path(spec["documents"])), **more)
        return
    lora = LORA if spec["task"] == "grpo-lora" else None
    questions = read_questions(Path(spec["questions"]))
    train_rl(model, out / "out", out, questions=questions, reward={"f1": 1.0}, lora=lora, **more)


def child(spec: dict[str, Any]) -> None:
    """Run one side and write its steps into spec["result"]."""
    from skillgraft.models.precision import describe

    steps: dict[int, dict[str, float]] = {}

    def log(step: int, _: int, logs: dict[str, float]) -> None:
        if "loss" in logs:
            kept = {name: float(logs[name]) for name in ("loss", "grad_norm", "num_tokens", "reward") if name in logs}
            kept["completion_tokens"] = float(logs.get("completions/mean_length", 0))
            steps[step] = {**kept, "time": time.perf_counter()}

    began = time.perf_counter()
    (run_trl if spec["side"].startswith("trl") else run_skillgraft)(spec, log)
    previous = {"time": began, "num_tokens": 0.0}
    for step in sorted(steps):
        now = {key: steps[step][key] for key in previous}
        steps[step]["seconds"] = now["time"] - previous["time"]
        steps[step]["tokens"] = now["num_tokens"] - previous["num_tokens"]
        previous = now
    found = {"steps": [{k: v for k, v in steps[step].items() if k != "time"} for step in sorted(steps)]}
    found |= {"precision": describe(), "max_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    Path(spec["result"]).write_text(json.dumps(found))


def agree(spec: dict[str, Any]) -> None:
    """Compare loss and gradient of both GRPO trainers on the same answers, which TRL samples."""
    import torch
    from trl import GRPOTrainer

    from skillgraft.train.cpu.fused_logprobs import fast_head
    from skillgraft.train.rollouts import SharedPrompts

    class Ours(SharedPrompts, GRPOTrainer):
        pass

    def gradient(trainer: Any, inputs: dict[str, Any]) -> tuple[float, torch.Tensor]:
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
        grads = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        return loss.item(), torch.cat(grads)

    def made(kind: type, **more: Any) -> Any:
        with mock.patch("trl.GRPOTrainer", kind):
            torch.manual_seed(spec["seed"])
            trainer = trl_trainer(spec, gradient_checkpointing=False, **more)
        generator = torch.Generator().manual_seed(spec["seed"])
        for name, parameter in trainer.model.named_parameters():
            if "lora_" in name:  # B is 0 at first, which would leave A without a gradient
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # what `train` sets
        return trainer

    theirs = made(GRPOTrainer)
    batch = next(iter(theirs.get_train_dataloader()))
    inputs = theirs._prepare_inputs(batch)
    results = {"trl": gradient(theirs, inputs)}
    del theirs
    ours = made(Ours)
    assert ours._packed
    with fast_head():
        results["skillgraft"] = gradient(ours, inputs)
    del ours
    exact = made(GRPOTrainer, bf16=False)
    results["fp32"] = gradient(exact, inputs)
    wanted = results["fp32"][1]
    found = {
        "loss": {side: loss for side, (loss, _) in results.items()},
        "distance_from_fp32_gradient": {
            side: ((grad - wanted).norm() / wanted.norm()).item() for side, (_, grad) in results.items()
        },
        "answers": len(inputs["advantages"]),
        "answers_with_advantage": int((inputs["advantages"].abs() > 1e-6).sum()),
    }
    Path(spec["result"]).write_text(json.dumps(found))


def summary(task: str, runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The rate of each side over all counted steps, its range over rounds, and the ratios to both TRL sides."""
    unit = "tokens" if task == "sft" else "steps"
    sides: dict[str, Any] = {}
    for side, found in runs.items():
        counted = [run["steps"][WARM:] for run in found]
        rates = [
            (sum(s["tokens"] for s in steps) if task == "sft" else len(steps)) / sum(s["seconds"] for s in steps)
            for steps in counted
        ]
        sides[side] = {
            f"{unit}_per_second": statistics.median(rates),
            "range": [min(rates), max(rates)],
            "seconds_a_step": statistics.median(s["seconds"] for steps in counted for s in steps),
            "seconds_to_the_first_step": statistics.median(run["steps"][0]["seconds"] for run in found),
            "max_rss_bytes": max(run["max_rss_bytes"] for run in found),
            "rounds": len(rates),
            "counted_steps": sum(map(len, counted)),
        }
        if task != "sft":
            lengths = [s["completion_tokens"] for steps in counted for s in steps]
            sides[side]["completion_tokens"] = statistics.mean(lengths)
    ours = sides["skillgraft"][f"{unit}_per_second"]
    ratios = {side: ours / facts[f"{unit}_per_second"] for side, facts in sides.items() if side != "skillgraft"}
    return {"sides": sides, "times_as_fast_as": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=SIDES)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=4, help=f"steps of each run, the first {WARM} of which do not count"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sides", nargs="*", help="only these; the table has all that --work holds")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        spec = json.loads(options.child)
        (agree if spec["side"] == "agree" else child)(spec)
        return
    from skillgraft.checkpoint.default_model import resolve_base

    work, task = options.work.resolve(), options.task
    work.mkdir(parents=True, exist_ok=True)
    environment = {**measure.child_environment(work, None), "PYTHONPATH": str(measure.REPOSITORY / "src")}
    data = {"documents": str(options.documents), "questions": str(options.questions)}
    model = str(resolve_base(MODEL, print))

    def measured(side: str, number: int) -> dict[str, Any]:
        name = f"{task}-{side}-{number}"
        result = work / f"{name}.json"
        if not result.exists():
            spec = {"task": task, "side": side, "steps": options.steps, "seed": options.seed, "model": model, **data}
            spec |= {"out": str(work / name), "result": str(result.with_suffix(".part"))}
            measure.shutil.rmtree(work / name, ignore_errors=True)  # left by a run that was cut off
            command = [sys.executable, __file__, task, "--work", str(work), "--child", json.dumps(spec)]
            measure.measure(command, work / f"{name}.log", environment)
            measure.shutil.rmtree(work / name, ignore_errors=True)
            result.with_suffix(".part").rename(result)
        return json.loads(result.read_text())

    sides = options.sides or SIDES[task]
    for number in range(options.rounds):
        for side in sides:
            print(
                f"round {number}", side, [round(s["seconds"], 2) for s in measured(side, number)["steps"]], flush=True
            )
    known = [*SIDES[task], "trl-plain"]
    runs = {
        side: [json.loads(file.read_text()) for file in sorted(work.glob(f"{task}-{side}-[0-9].json"))]
        for side in known
    }
    runs = {side: found for side, found in runs.items() if found}
    facts = summary(task, runs)
    good = facts["times_as_fast_as"]["trl"] >= GOAL
    if task == "sft":
        apart = [
            abs(ours["loss"] - theirs["loss"])
            for ours, theirs in zip(runs["skillgraft"][0]["steps"], runs["trl"][0]["steps"], strict=True)
        ]
        facts["largest_difference_of_loss"], facts["loss_tolerance"] = max(apart), LOSS_TOLERANCE
        good &= max(apart) <= LOSS_TOLERANCE
    else:
        same = facts["same_answers"] = measured("agree", 0)
        distance = same["distance_from_fp32_gradient"]
        facts["loss_tolerance"] = LOSS_TOLERANCE
        good &= abs(same["loss"]["skillgraft"] - same["loss"]["trl"]) <= LOSS_TOLERANCE
        good &= distance["skillgraft"] <= GRADIENT_TOLERANCE * distance["trl"]
    content = {
        "benchmark": f"train {task}",
        "model": MODEL,
        "settings": {**SETTINGS[task], **SAME, "steps": options.steps, "first_steps_left_out": WARM},
        "lora": LORA if task == "grpo-lora" else None,
        "precision": runs["skillgraft"][0]["precision"],
        **facts,
        "runs": {side: [run["steps"] for run in found] for side, found in runs.items()},
        "machine": measure.machine(work),
        "versions": {**measure.versions(), "trl": measure.importlib.metadata.version("trl")},
        "git": measure.git_state(),
    }
    measure.write_result(RESULTS / f"train-{task}.json", content)
    for side, row in facts["sides"].items():
        print(f"{side:24}", *(f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float)))
    print("times as fast as", {side: round(ratio, 2) for side, ratio in facts["times_as_fast_as"].items()})
    sys.exit(not good)


if __name__ == "__main__":
    main()
