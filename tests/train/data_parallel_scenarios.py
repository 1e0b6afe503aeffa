"""What two processes do together in `test_together`, and a process alone in the same words."""

import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import Trainer
from trl import GRPOConfig, RLOOConfig

from skillgraft import run
from skillgraft.adapters import get_adapter
from skillgraft.data.documents import Document
from skillgraft.data.tasks import Question
from skillgraft.errors import SkillgraftError
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.pipeline.executors.launcher import VARIABLES, _meet
from skillgraft.support.rank import processes
from skillgraft.train import data_parallel, pass_rates
from skillgraft.train.algorithms import Grpo, Rloo
from skillgraft.train.callbacks import KeepAlive
from skillgraft.train.cpu.fused_logprobs import fast_head
from skillgraft.train.examples import document_rows
from skillgraft.train.rl import train_rl
from skillgraft.train.sft import fit, sft_arguments
from tests.recipes import tiny_recipe
from tests.tiny import tiny_checkpoint
from tests.train.test_rollouts import padded, trainer

PROMPTS = [[5, 6, 7, 8], [9], [10, 11], [12, 13, 14]]
ANSWERS = [list(range(20 + row, 20 + row + 1 + row * 5 % 7)) for row in range(12)]
MIXED = [1.0, -0.4, -0.6, 0.0, 1e-9, 0.0, 0.3, 0.0, -0.3, 2.0, -1.5, -0.5]
HALF_IDLE = MIXED[:6] + [0.0] * 6
LOSSES = {
    "dapo": (Grpo, GRPOConfig, False, {}, MIXED),
    "idle": (Grpo, GRPOConfig, False, {}, HALF_IDLE),
    "grpo": (Grpo, GRPOConfig, False, {"loss_type": "grpo", "temperature": 0.7}, MIXED),
    "dr_grpo": (Grpo, GRPOConfig, True, {"loss_type": "dr_grpo"}, MIXED),
    "kl": (Grpo, GRPOConfig, False, {"beta": 0.1}, MIXED),
    "rloo": (Rloo, RLOOConfig, False, {"beta": 0.0}, MIXED),
    "bnpo": (Grpo, GRPOConfig, False, {"loss_type": "bnpo"}, MIXED),
}
"""Name -> trainer, its config, whether by LoRA, settings, advantages."""


@contextmanager
def group():
    """Join the other process as a stage does."""
    team = _meet()
    with team._group():
        yield


def prepared(folder: Path):
    """A folder to train in."""
    tiny_checkpoint(folder / "start")
    for name in ("out", "work"):
        (folder / name).mkdir()
    return folder


def answers(advantages):
    """The answers of four questions, three each, as TRL hands them to a loss."""
    prompts, prompt_mask = padded([PROMPTS[row // 3] for row in range(12)], left=True)
    made, made_mask = padded(ANSWERS, left=False)
    return {
        "prompt_ids": prompts,
        "prompt_mask": prompt_mask,
        "completion_ids": made,
        "completion_mask": made_mask,
        "advantages": torch.tensor(advantages),
        "old_logps": torch.full((12,), -12.0),
        "ref_per_token_logps": -3.0 * made_mask,
        "num_items_in_batch": made_mask.sum(),
    }


def gradient(made, model, inputs):
    """The gradient of a trainer's loss."""
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    with fast_head():
        made.compute_loss(model, inputs).backward()
    return {name: p.grad.clone() for name, p in made.model.named_parameters() if p.grad is not None}


def gradients(folder, rank):
    """Of each loss, from this process's half of the answers."""
    found = {}
    tiny_checkpoint(folder / str(rank) / "start")  # outside of a group: in it only the first process can save
    with group():
        for name, (kind, config, lora, settings, advantages) in LOSSES.items():
            settings = {**settings, "per_device_train_batch_size": 6, "ddp_find_unused_parameters": False}
            made = trainer(kind, config, folder / str(rank), lora, **settings)
            mine = slice(6 * rank, 6 * rank + 6)
            half = {key: value[mine] if value.ndim else value for key, value in answers(advantages).items()}
            found[name] = gradient(made, made.accelerator.prepare(made.model), half)
    return found


FIVE = [
    Document(name, name, f"The harbour of {name} was built in {1900 + number}. " * (1 + number))
    for number, name in enumerate(("Vell", "Orm", "Tarn", "Issk", "Aune"))
]
SLOW = {"learning_rate": 3e-3, "warmup_steps": 0, "max_length": 64}
FINE_TUNINGS = {
    "rest": {"per_device_train_batch_size": 4, "num_train_epochs": 3},
    "accumulated": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 3},
    "padded": {"per_device_train_batch_size": 4, "num_train_epochs": 3},
}
"""Five documents in batches that do not go round: one process is left without a row."""


def fine_tune(folder, name):
    """The weights that training gives, its log, and what it says that it cost."""
    tokenizer = load_tokenizer(folder / "start")
    args = sft_arguments({**SLOW, **FINE_TUNINGS[name]}, folder / "work", 3)
    model = load_model(folder / "start")
    if name == "padded":  # as on a GPU
        model.config.sliding_window = 1000
    rows = document_rows(tokenizer, FIVE, 64)
    model, trained = fit(model, tokenizer, rows, args, adapter=None, checkpoint_seconds=999, progress=None)
    return {"weights": model.state_dict(), "curve": trained.curve, "tokens": trained.tokens}


def fine_tunings(folder, rank):
    """Each of `FINE_TUNINGS`, then one that a signal to one process stops and that goes on."""
    own = {name: prepared(folder / f"{name}-{rank}") for name in FINE_TUNINGS}
    names = ("stopped", "left")
    for name in names if rank == 0 else ():
        prepared(folder / name)
    with group():
        found = {name: fine_tune(own[name], name) for name in FINE_TUNINGS}
        with stopped_in(rank == 1, step=4):
            found["stopped"] = stop_and_go_on(folder / "stopped")
        with stopped_in(rank == 0, step=4):
            found["left"] = stop_and_go_on(folder / "left", on=False)
    return found


def stop_and_go_on(folder, stop=True, on=True):
    """Train until a signal, then again to the end: what the checkpoint held, and the weights."""
    tokenizer = load_tokenizer(folder / "start")
    rows = document_rows(tokenizer, FIVE, 64)
    args = sft_arguments({**SLOW, **FINE_TUNINGS["rest"]}, folder / "work", 3)

    def train():
        model = load_model(folder / "start")
        return fit(model, tokenizer, rows, args, adapter=None, checkpoint_seconds=999, progress=None)[0]

    kept = []
    if stop:
        with pytest.raises(KeyboardInterrupt):
            train()
        kept = sorted(path.name for path in (folder / "work").glob("checkpoint-*/rng_state_*"))
        data_parallel.agree()
    return {"weights": train().state_dict() if on else {}, "kept": kept}


@contextmanager
def stopped_in(this_process, step):
    """Send this process a signal to stop once, at the end of a step: among several the launcher's."""
    original, sent = KeepAlive.on_step_end, []

    def on_step_end(self, args, state, control, **others):
        if this_process and state.global_step == step and not sent:
            sent.append(True)
            os.kill(os.getpid(), signal.SIGTERM if processes() > 1 else signal.SIGINT)
        return original(self, args, state, control, **others)

    KeepAlive.on_step_end = on_step_end
    try:
        yield
    finally:
        KeepAlive.on_step_end = original


FOUR = [Question(place, f"When was {place} built?", (place,)) for place in ("Vell", "Orm", "Tarn", "Issk")]
RL = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 5,
    "warmup_steps": 0,
    "learning_rate": 1e-3,
}
ROUNDS = (5, 2)
RECORDED = []


def recorded(given):
    """A reward that notes which questions this process was asked."""
    RECORDED.append(given.answers[0])
    return float(sum(letter in "aeiou" for letter in given.completion)) + len(given.completion) / 50


def reinforce(folder, algorithm="grpo", adapt=None, stop=None, **settings):
    """The questions asked in order, the weights after each round, and how often pass rates were measured."""
    measured, weights = [], []
    train, rates = Trainer.train, pass_rates.pass_rates

    def spied(self, *args, **kwargs):
        done = train(self, *args, **kwargs)
        weights.append({name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad})
        return done

    def half(model, tokenizer, questions, *_):
        measured.append(len(questions))
        return [0.5] * len(questions)

    Trainer.train, pass_rates.pass_rates = spied, half
    RECORDED.clear()
    try:
        with stopped_in(stop is not None, stop):
            for _ in range(2):
                try:
                    trained = train_rl(
                        folder / "start",
                        folder / "out",
                        folder / "work",
                        tasks=FOUR,
                        reward={f"{__name__}.recorded": 1.0},
                        algorithm=algorithm,
                        pass_rate_samples=2,
                        rounds=ROUNDS,
                        trainer={**RL, **settings},
                        adapter=get_adapter(adapt),
                        seed=1,
                        checkpoint_seconds=999,
                    )
                    break
                except KeyboardInterrupt:
                    data_parallel.agree()
    finally:
        Trainer.train, pass_rates.pass_rates = train, rates
    return {"asked": list(RECORDED), "weights": weights, "measured": len(measured), "curve": trained.curve}


def reinforcements(folder, rank):
    """GRPO on all weights, stopped once; ReMax and RLOO by LoRA, the latter in two parts a step."""
    names = ("grpo", "remax", "rloo")
    if rank == 0:
        for name in names:
            prepared(folder / name)
    with group():
        found = {"grpo": reinforce(folder / "grpo", stop=3 if rank == 0 else None)}
        found["remax"] = reinforce(folder / "remax", "remax", adapt={"kind": "lora", "r": 2})
        found["rloo"] = reinforce(
            folder / "rloo", "rloo", adapt={"kind": "lora", "r": 2}, gradient_accumulation_steps=2
        )
    return found


BATCHES = ["stages.rl.trainer.per_device_train_batch_size=16"]
ALONE = {"kind": "single_passage", "from": "base", "documents": "data", "questions": "data/questions.jsonl"}
"""A stage that trains, in the first process alone."""


def ran(folder, rank, overrides):
    """How a run ended in this process: what it made, its error or its exit code."""
    try:
        result = run(folder / "recipe.yaml", overrides=overrides, runs=folder / "runs")
    except SystemExit as end:
        return {"code": end.code}
    except SkillgraftError as error:
        return {"error": str(error), "rank": rank}
    facts = {name: json.loads((path / "stage.json").read_text())["facts"] for name, path in result.stages.items()}
    report = json.loads((result.directory / "report.json").read_text())
    seen = [name for name in VARIABLES if name in os.environ]
    return {"cached": result.cached, "facts": facts, "machine": report["machine"], "seen": seen}


def runs(folder, rank):
    """A whole recipe."""
    if rank == 0:
        trainer = {"max_steps": 2, "per_device_train_batch_size": 1, "warmup_steps": 0}
        tiny_recipe(folder, alone={**ALONE, "trainer": trainer, "retention_passages": 0, "max_new_tokens": 4})
    return ran(folder, rank, BATCHES)


def runs_again(folder, rank):
    """The same once more."""
    return ran(folder.with_name("runs"), rank, BATCHES)


def refused(folder, rank):
    """The same with a batch that does not go round."""
    return ran(folder.with_name("runs"), rank, ["stages.sft.trainer.per_device_train_batch_size=3", *BATCHES])
