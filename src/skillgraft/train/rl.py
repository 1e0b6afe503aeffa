"""Closed-book reinforcement learning by TRL on questions whose documents the model was fine-tuned on.

The document is never in the prompt, so reward can only come from what SFT put into the weights (PaST,
arXiv 2601.11258, section 3; GRPO, RLOO or ReMax: `train.algorithms`). No reference model (beta = 0) unless
`trainer.beta` asks for one: then it is the checkpoint that RL started from, in every round.
With LoRA the frozen weights are held in bf16 where bf16 pays: rollouts then read half the bytes. The factors stay in
fp32, and the update that they are is applied to the fp32 weights when saving.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from peft.helpers import disable_input_dtype_casting
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import GRPOConfig

from skillgraft.adapters.kind import Adapter
from skillgraft.adapters.lora import ADAPTER, roll_out_merged
from skillgraft.checkpoint.layout import context_of, read_config
from skillgraft.data.synthesis.judge import Judge
from skillgraft.data.tasks import Task
from skillgraft.domains.kind import Domain, Reward, RewardInput
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.domains.rewards import get_reward
from skillgraft.errors import RecipeError, TrainingError
from skillgraft.models.generation import answer_text
from skillgraft.models.loading import count_parameters, load_model, load_tokenizer
from skillgraft.models.precision import bf16_pays
from skillgraft.models.saving import check_finite, save_checkpoint
from skillgraft.settings.synthesis import JUDGE
from skillgraft.support.progress import NO_METRICS, Progress
from skillgraft.support.rank import is_first
from skillgraft.train.algorithms import ALGORITHMS, check_remax
from skillgraft.train.callbacks import KeepAlive, newest_checkpoint, read_log, stop_on_interrupt
from skillgraft.train.cpu.fused_logprobs import fast_head
from skillgraft.train.data_parallel import agree, first_before_others, shared_batches
from skillgraft.train.guard import explained, guarded, sampling
from skillgraft.train.pass_rates import answered_sometimes, in_order
from skillgraft.train.plan_checks import check_asked, check_questions_suffice
from skillgraft.train.sft import Trained
from skillgraft.train.trainer_arguments import check_at_least, trainer_arguments

DEFAULTS: dict[str, Any] = {
    "max_steps": 150,
    "num_generations": 8,
    "per_device_train_batch_size": 64,
    "max_completion_length": 32,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
    "temperature": 1.0,
}
LEARNING_RATE = {"adapter": 3e-4, "full": 3e-5}


FINISHED = "finished"
"""Folder of a round's weights (LoRA: its factors), there once the round is done."""

CURVE = {
    "reward": "reward",
    "share_without_variance": "share_without_variance",
    "completion_tokens": "completions/mean_length",
    "entropy": "entropy",
    "kl": "kl",
    "greedy_reward": "greedy_reward",
    "judge_without_verdict": "judge_without_verdict",
}
"""Metric of the report's RL curve -> its name in the trainer's log. The loss says nothing in GRPO and is left out.

TRL's own share of groups without variance is 0 or 1 where rewards are scaled by the batch's deviation.
"""


def train_rl(
    model_dir: Path,
    out: Path,
    workdir: Path,
    *,
    tasks: Sequence[Task],
    domain: Domain = KNOWLEDGE,
    reward: Mapping[str, float] | None = None,
    judge: Judge | None = None,
    algorithm: str = "grpo",
    order: str = "shuffled",
    skip_without_variance: bool = False,
    pass_rate_samples: int = 0,
    rounds: Sequence[int] = (),
    trainer: Mapping[str, Any] | None = None,
    adapter: Adapter | None = None,
    seed: int = 0,
    checkpoint_seconds: float = 300.0,
    progress: Progress | None = None,
) -> Trained:
    """Train the checkpoint `model_dir` with RL on a domain's tasks; write weights, tokenizer and factors into `out`.

    Trainer checkpoints live in `workdir`; a rerun resumes from the newest whole one. With `pass_rate_samples`, only
    questions that the model answers sometimes are trained on (see `train.pass_rates`). `rounds` are the steps of
    several rounds instead of `trainer.max_steps`: before each the pass rates are measured anew, so that what has been
    learnt by then is left out and what has come into reach is taken in; each starts a fresh optimiser. `algorithm` is
    one of `train.algorithms.ALGORITHMS`; `order` that of the questions by pass rate (see `pass_rates.in_order`); with
    `skip_without_variance` groups that teach nothing are left out of a step. `judge` answers for the reward `judge`.

    Raises:
        RecipeError: an unknown reward, or an argument that the trainer or adapter does not know.
        DataError: a prompt that does not fit into the model's context with its answer.
        TrainingError: weights that are not finite; no questions, or none that is answered sometimes; a judge that too
            often says neither yes nor no.
        EndpointError: the judge's endpoint fails for good; checkpoints and its verdicts so far are kept.
    """
    if not tasks:
        raise TrainingError("rl: there is no question to train on")
    mix = dict(reward or domain.default_reward)
    tokenizer = load_tokenizer(model_dir)
    args = rl_arguments(mix, trainer, adapter is not None, workdir, seed, algorithm)
    if order != "shuffled":
        args.shuffle_dataset = False
    context = context_of(read_config(model_dir))
    check_asked(tokenizer, domain, tasks, context, args.max_completion_length, "trainer.max_completion_length")
    steps = list(rounds) or [args.max_steps]
    half = adapter is not None and bf16_pays()
    log: list[dict[str, float]] = []
    start: Path | None = None
    tokens = trained_questions = 0
    for number, round_steps in enumerate(steps):
        here = workdir / f"round-{number}"
        here.mkdir(exist_ok=True)
        before = sum(steps[:number])
        chosen = list(tasks)
        if pass_rate_samples:
            with first_before_others(), sampling("rl", here):
                chosen = answered_sometimes(
                    partial(_load, model_dir, start, half, adapter),
                    tokenizer,
                    tasks,
                    domain,
                    pass_rate_samples,
                    args,
                    here,
                    progress,
                )
            chosen = in_order(tasks, chosen, order, here)
        check_questions_suffice(len(chosen), args)
        trained_questions = max(trained_questions, len(chosen))
        finished = here / FINISHED
        if not finished.exists():
            keeper = KeepAlive(here, checkpoint_seconds, _from_step(progress, before, sum(steps)))
            model = load_model(
                start if start and adapter is None else model_dir, torch.bfloat16 if half else torch.float32
            )
            if start and adapter is None:
                model.config._name_or_path = str(model_dir)  # where TRL takes the reference model from
            with explained("rl", here):
                grpo = ALGORITHMS[algorithm].trainer(
                    model=model,
                    reward_funcs=[_for_trl(name, tokenizer, chosen, domain, judge) for name in mix],
                    args=_for_round(args, round_steps, here),
                    train_dataset=Dataset.from_list(
                        [{"prompt": domain.prompt(tokenizer, task), "task": n} for n, task in enumerate(chosen)]
                    ),
                    processing_class=tokenizer,
                    peft_config=adapter.apply(model) if adapter is not None else None,
                    callbacks=[keeper],
                )
            grpo.skip_without_variance = skip_without_variance
            grpo.remove_callback(PrinterCallback)
            if adapter is not None:
                roll_out_merged(grpo.model, adapter)
                if start:
                    adapter.restore(grpo.model, start)
            with first_before_others():
                checkpoint = newest_checkpoint(here)
            with (
                stop_on_interrupt(keeper),
                guarded(grpo, "rl"),
                _no_casts(grpo.model, half),
                fast_head(),
                shared_batches(grpo),
            ):
                grpo.train(resume_from_checkpoint=checkpoint)
            if is_first():
                _keep(grpo.model, finished)
            agree()
            del grpo
        start = finished
        logged = read_log(here)
        tokens += max((int(record.get("num_tokens", 0)) for record in logged), default=0)
        log += [{**record, "step": record["step"] + before} for record in logged]
    model = _load(model_dir, start, half=False, adapter=adapter)
    parameters = count_parameters(model)
    if is_first():
        if adapter is not None and start:
            shutil.copytree(start, out / ADAPTER)
        save_checkpoint(model, out, tokenizer)
    # Every token goes through forwards when it is made, and forwards and backwards again when it is trained on.
    shares = [record["trained_share"] for record in log if "trained_share" in record]
    flops = (2.0 + 6.0 * (sum(shares) / len(shares) if shares else 1.0)) * parameters * tokens
    return Trained(tokens, flops, curve(log), parameters, trained_questions)


def _load(model_dir: Path, trained: Path | None, half: bool, adapter: Adapter | None) -> PreTrainedModel:
    """Return the model after the round that wrote `trained`, its factors merged; without one, the start."""
    dtype = torch.bfloat16 if half else torch.float32
    if trained is None or adapter is None:
        return load_model(trained or model_dir, dtype)
    return adapter.load_merged(model_dir, trained, dtype)


def _keep(model: PreTrainedModel | PeftModel, finished: Path) -> None:
    """Write a round's weights into `finished` in one rename."""
    check_finite(model)
    part = finished.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(str(part))
    part.rename(finished)


def _for_round(args: GRPOConfig, steps: int, folder: Path) -> GRPOConfig:
    """Return `args` for one round; copied, since their own constructor refuses what it has derived before."""
    mine = copy(args)
    mine.max_steps, mine.output_dir = steps, str(folder)
    return mine


def _from_step(progress: Progress | None, before: int, steps: int) -> Progress | None:
    """Return `progress` counting the steps of earlier rounds in."""
    if progress is None:
        return None

    def counted(step: int, _: int, metrics: Mapping[str, float] = NO_METRICS, /) -> None:
        progress(step + before, steps, metrics)

    return counted


def rl_arguments(
    mix: Mapping[str, float],
    trainer: Mapping[str, Any] | None,
    adapted: bool,
    workdir: Path,
    seed: int,
    algorithm: str = "grpo",
) -> GRPOConfig:
    """Return TRL's config from a recipe's `trainer:` mapping over our defaults; `RecipeError` for what it refuses."""
    ours = {"learning_rate": LEARNING_RATE["adapter" if adapted else "full"], "reward_weights": list(mix.values())}
    _, config, defaults = ALGORITHMS[algorithm]
    if algorithm == "remax":
        check_remax(trainer or {})
    args = trainer_arguments(config, {**DEFAULTS, **defaults, **ours}, trainer or {}, workdir, seed)
    if args.max_steps <= 0:
        raise RecipeError(f"trainer: max_steps is {args.max_steps}, expected a positive number: RL has no natural end")
    check_at_least(1, args, "max_completion_length")
    if args.sync_ref_model and not args.beta:
        raise RecipeError("trainer: sync_ref_model needs beta: without it there is no reference model; leave it out")
    if args.sync_ref_model and adapted:
        raise RecipeError(
            "trainer: sync_ref_model cannot be used with adapt: the start without its adapter is the reference, and it "
            "does not move; leave it out"
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


def _for_trl(
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[Task],
    domain: Domain,
    judge: Judge | None = None,
) -> Callable[..., list[float]]:
    """Return a reward as TRL calls it, with the places of the answers' tasks in the data set's column `task`."""
    reward: Reward | None = None if name == JUDGE else get_reward(name, domain.rewards)

    def scored(
        prompts: list[Any],
        completion_ids: list[list[int]],
        task: list[int],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        texts = [answer_text(tokenizer, ids) for ids in completion_ids]
        answered = [tasks[place] for place in task]
        if reward is not None:
            answers = zip(prompts, texts, completion_ids, answered, strict=True)
            return [reward(RewardInput(prompt, text, ids, one.answers, one)) for prompt, text, ids, one in answers]
        if judge is None:
            raise RecipeError(f"reward '{JUDGE}' needs a judge")
        verdicts = judge.verdicts([(one.prompt, one.answers, text) for one, text in zip(answered, texts, strict=True)])
        log_metric("judge_without_verdict", sum(verdict is None for verdict in verdicts) / len(verdicts))
        return [float(verdict or 0.0) for verdict in verdicts]

    scored.__name__ = name
    return scored
