"""Closed-book reinforcement learning: GRPO by TRL on questions whose documents the model was fine-tuned on.

The document is never in the prompt, so reward can only come from what SFT put into the weights (PaST,
arXiv 2601.11258, section 3; GRPO: arXiv 2402.03300). No reference model (beta = 0) unless `trainer.beta` asks for one.
With LoRA the frozen weights are held in bf16 where bf16 pays: rollouts then read half the bytes. The factors stay in
fp32, and the update that they are is applied to the fp32 weights when saving.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from transformers import PreTrainedModel, PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import utils as trl_utils

from skillgraft.domains.knowledge import Question
from skillgraft.domains.rewards import DEFAULT_MIX, Reward, get_reward
from skillgraft.errors import RecipeError, TrainingError
from skillgraft.train.callbacks import KeepAlive, Progress, newest_checkpoint, read_log, stop_on_interrupt
from skillgraft.train.common import count_parameters, load_model, load_tokenizer, trainer_arguments
from skillgraft.train.difficulty import answered_sometimes
from skillgraft.train.lora import lora_config, roll_out_merged, save_trained
from skillgraft.train.precision import bf16_pays
from skillgraft.train.prompts import as_prompt
from skillgraft.train.sft import Trained

DEFAULTS: dict[str, Any] = {
    "max_steps": 150,
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "max_completion_length": 32,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
    "temperature": 1.0,
    # Divided by the batch's deviation, not the group's: in a group where all answers are wrong, the latter blows a
    # stray word's worth of F1 up to the size of a right answer.
    "scale_rewards": "batch",
}
LEARNING_RATE = {"lora": 3e-4, "full": 3e-5}

CURVE = {
    "reward": "reward",
    "share_without_variance": "frac_reward_zero_std",
    "completion_tokens": "completions/mean_length",
    "entropy": "entropy",
}
"""What a person is shown of an RL stage -> TRL's name for it. The loss says nothing in GRPO and is left out."""


def train_rl(
    model_dir: Path,
    out: Path,
    workdir: Path,
    *,
    questions: Sequence[Question],
    reward: Mapping[str, float] | None = None,
    pass_rate_samples: int = 0,
    trainer: Mapping[str, Any] | None = None,
    lora: Mapping[str, Any] | None = None,
    seed: int = 0,
    checkpoint_seconds: float = 300.0,
    progress: Progress | None = None,
) -> Trained:
    """Train the checkpoint `model_dir` with GRPO on `questions`; write weights, tokenizer and factors into `out`.

    Trainer checkpoints live in `workdir`; a rerun goes on from the newest whole one. With `pass_rate_samples`, only
    questions that the model answers sometimes are trained on (see `train.difficulty`).

    Raises:
        RecipeError: an unknown reward, or an argument that the trainer or LoRA does not know.
        TrainingError: no questions, or none that is answered sometimes.
    """
    if not questions:
        raise TrainingError("rl: there is no question to train on")
    mix = dict(reward or DEFAULT_MIX)
    tokenizer = load_tokenizer(model_dir)
    args = rl_arguments(mix, trainer, lora is not None, workdir, seed)
    keeper = KeepAlive(workdir, checkpoint_seconds, progress)
    half = lora is not None and bf16_pays()
    model = load_model(model_dir, torch.bfloat16 if half else torch.float32)
    parameters = count_parameters(model)
    if pass_rate_samples:
        questions = answered_sometimes(model, tokenizer, questions, pass_rate_samples, args, workdir, progress)
    grpo = GRPOTrainer(
        model=model,
        reward_funcs=[_for_trl(name, get_reward(name)) for name in mix],
        args=args,
        train_dataset=Dataset.from_list(
            [{"prompt": as_prompt(tokenizer, q.question), "answers": list(q.answers)} for q in questions]
        ),
        processing_class=tokenizer,
        peft_config=lora_config(lora) if lora is not None else None,
        callbacks=[keeper],
    )
    grpo.remove_callback(PrinterCallback)
    if lora is not None:
        roll_out_merged(grpo.model)
    with stop_on_interrupt(keeper), _no_casts(grpo.model, half), _score_completions_only():
        grpo.train(resume_from_checkpoint=newest_checkpoint(workdir))
    save_trained(grpo.model, model_dir, out, tokenizer, lora is not None)
    log = read_log(workdir)
    tokens = int(log[-1].get("num_tokens", 0)) if log else 0
    return Trained(tokens, 8.0 * parameters * tokens, curve(log), parameters, len(questions))


def rl_arguments(
    mix: Mapping[str, float], trainer: Mapping[str, Any] | None, lora: bool, workdir: Path, seed: int
) -> GRPOConfig:
    """Return TRL's config from a recipe's `trainer:` mapping over our defaults; `RecipeError` for what it refuses."""
    ours = {"learning_rate": LEARNING_RATE["lora" if lora else "full"], "reward_weights": list(mix.values())}
    args = trainer_arguments(GRPOConfig, {**DEFAULTS, **ours}, trainer or {}, workdir, seed)
    if args.max_steps <= 0:
        raise RecipeError(
            f"trainer: max_steps is {args.max_steps}, expected a positive number: GRPO has no natural end"
        )
    return args


def curve(log: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the steps of a GRPO log under our names, each reward's own mean as `reward:<name>`."""
    points = []
    for record in log:
        if "reward" not in record:
            continue
        point = {"step": record["step"], **{ours: record[theirs] for ours, theirs in CURVE.items() if theirs in record}}
        parts = {k.split("/")[1]: v for k, v in record.items() if k.startswith("rewards/") and k.endswith("/mean")}
        points.append({**point, **{f"reward:{name}": value for name, value in parts.items()}})
    return points


def _no_casts(model: PreTrainedModel | PeftModel, half: bool) -> AbstractContextManager[None]:
    """Keep PEFT from casting activations to the factors' fp32 only for autocast to cast them back."""
    return disable_input_dtype_casting(model) if half else nullcontext()


@contextmanager
def _score_completions_only() -> Iterator[None]:
    """Let TRL's chunked log-probabilities skip prompt and padding on the CPU too, as they do where Triton runs.

    TRL 1.16 scores every position elsewhere, to spare compilers new shapes, and masks afterwards: the same numbers for
    several times the work over the whole vocabulary. Without the switch that it asks, nothing is changed.
    """
    asked = vars(trl_utils).get("_use_triton")
    if asked is None:
        yield
        return
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = asked


def _for_trl(name: str, reward: Reward) -> Callable[..., list[float]]:
    def scored(completions: list[Any], answers: list[list[str]], **_: Any) -> list[float]:
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        return [reward(text.strip(), gold) for text, gold in zip(texts, answers, strict=True)]

    scored.__name__ = name
    return scored
