"""RL algorithms: GRPO and RLOO as TRL has them, ReMax on TRL's GRPO trainer, on groups with variance.

All three weigh the log-probability of a sampled answer by its advantage, the reward less a baseline (r: reward of one
of G answers to a question):

    grpo    r − mean of the G rewards, over their deviation where `scale_rewards` asks   arXiv 2402.03300, section 4.1
    rloo    r − mean of the other G − 1 rewards                                          arXiv 2402.14740, section 3
    remax   r − reward of the greedy answer to the same question                         arXiv 2310.10505, Algorithm 1

TRL 1.16 has no ReMax. Here it is TRL's GRPO trainer with other advantages and a loss that sums over an answer's tokens
(`dr_grpo`, a constant divisor), as REINFORCE does. Departures: several answers are sampled for a question, not one; the
KL to the start, if `beta` asks for it, is in the loss as in GRPO, not in the reward.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
import trl
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import GenerationConfig, TrainingArguments
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from skillgraft.errors import RecipeError, TrainingError
from skillgraft.train.epochs import EpochSampler
from skillgraft.train.rollouts import CHECKED, SharedPrompts

SAME = 1e-6
"""Rewards that differ by less, as a share of the largest, count as equal."""


class _Ours:
    """What each of TRL's trainers gets: an order that resumes exactly, a filter for groups, and what it reports."""

    skip_without_variance = False
    rewards: Any = None
    """Of the answers under way, weighted and summed, (answers,), over all processes."""
    baselines: Any = None
    """Per-answer baselines for algorithms that do not use the group mean, (answers,)."""

    def _get_train_sampler(self: Any, dataset: Dataset | None = None) -> Sampler[int]:
        return EpochSampler(super()._get_train_sampler(dataset))  # type: ignore[misc]

    def _calculate_rewards(
        self: Any, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], ids: list[Any]
    ) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, ids)  # type: ignore[misc]
        self.rewards = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        return rewards

    def _generate_and_score_completions(self: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.rewards = self.baselines = None
        tokens = self.state.num_input_tokens_seen
        batch = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if not self.model.training:
            return batch
        if self.rewards is None:
            raise TrainingError(f"rl: trl {trl.__version__} scores answers in another place; install trl {CHECKED}")
        begin = self.accelerator.process_index * len(inputs)
        mine = slice(begin, begin + len(inputs))
        if self.baselines is not None:
            advantages = self.rewards - self.baselines
            batch["advantages"] = advantages[mine]
            for place, advantage in zip(range(-len(advantages), 0), advantages.tolist(), strict=True):
                self._logs["advantages"][place] = advantage
        varied = with_variance(self.rewards, self.num_generations, self.baselines)
        if self.skip_without_variance:
            batch = only_rows(batch, varied[mine], self.args.steps_per_generation)
            if "num_items_in_batch" in batch:  # TRL's divisor: the tokens of the answers that are trained on
                batch["num_items_in_batch"] = self.accelerator.gather(batch["completion_mask"].sum()).sum()
        trained = self.accelerator.gather(batch["prompt_mask"].sum() + batch["completion_mask"].sum()).sum().item()
        self._metrics["train"]["share_without_variance"].append(1 - varied.float().mean().item())
        self._metrics["train"]["trained_share"].append(trained / (self.state.num_input_tokens_seen - tokens))
        return batch


class Grpo(_Ours, SharedPrompts, GRPOTrainer):
    """TRL's GRPO."""


class Rloo(_Ours, SharedPrompts, RLOOTrainer):
    """TRL's RLOO."""


class Remax(_Ours, SharedPrompts, GRPOTrainer):
    """ReMax: a sampled answer's reward less that of the greedy answer to the same question."""

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], ids: list[Any]
    ) -> Tensor:
        if self.model.training:
            # Each question stands there once for each of its answers, one after the other.
            group = torch.tensor([i > 0 and inputs[i] != inputs[i - 1] for i in range(len(inputs))]).cumsum(0).tolist()
            firsts = [group.index(number) for number in range(group[-1] + 1)]
            greedy, greedy_ids = self._greedy([prompts[i] for i in firsts])
            super()._calculate_rewards(inputs, prompts, [greedy[n] for n in group], [greedy_ids[n] for n in group])
            self.baselines = self.rewards
            self._metrics["train"]["greedy_reward"].append(self.rewards.mean().item())
        return super()._calculate_rewards(inputs, prompts, completions, ids)

    def _greedy(self, prompts: list[Any]) -> tuple[list[Any], list[list[int]]]:
        """Return the likeliest answers to `prompts` and their tokens; what TRL reports of sampled answers stays."""
        metrics = {name: list(values) for name, values in self._metrics["train"].items()}
        with _greedily(self):
            output = self._generate(prompts)
        tokens = self._metrics["train"]["num_tokens"]
        self._metrics["train"].clear()
        self._metrics["train"].update({**metrics, "num_tokens": tokens})
        return output[3], output[1]


@contextlib.contextmanager
def _greedily(trainer: Any) -> Iterator[None]:
    """Let the trainer's model take the likeliest token each time."""
    before = trainer.generation_config, trainer.generation_kwargs
    sampling = ("do_sample", "temperature", "top_p", "top_k", "min_p")
    kwargs = {key: value for key, value in trainer.generation_kwargs.items() if key not in sampling}
    trainer.generation_kwargs = {**kwargs, "do_sample": False}
    trainer.generation_config = GenerationConfig(**trainer.generation_kwargs, disable_compile=True)
    try:
        yield
    finally:
        trainer.generation_config, trainer.generation_kwargs = before


def with_variance(
    rewards: Tensor,  # (answers,)
    group: int,
    baselines: Tensor | None = None,  # (answers,)
) -> Tensor:
    """Return for each answer whether its group has an answer with another reward than it is compared with, (answers,).

    Compared is with the group's first reward, which is as good as their mean, or with `baselines`.
    """
    grouped = rewards.view(-1, group)
    compared = grouped[:, :1] if baselines is None else baselines.view(-1, group)
    return ((grouped - compared).abs().amax(dim=1) > SAME * rewards.abs().max()).repeat_interleave(group)


def only_rows(
    batch: Mapping[str, Any],
    keep: Tensor,  # (answers,), boolean
    parts: int,
) -> dict[str, Any]:
    """Return the batch with the answers of `keep` alone (DAPO, 2503.14476, 3.2). Advantages stay
    scaled by the whole batch where `scale_rewards` is `batch`.

    Where their number is 0 or cannot be cut into `parts` equal ones, as many of the others stay as that takes; their
    advantages are 0. Departure: no other questions are asked in their place.
    """
    kept, others = keep.nonzero().flatten(), (~keep).nonzero().flatten()
    missing = -len(kept) % parts if len(kept) else parts
    rows = torch.cat([kept, others[:missing]]).sort().values
    return {name: value[rows] if isinstance(value, Tensor) and value.ndim else value for name, value in batch.items()}


class Algorithm(NamedTuple):
    """TRL's trainer with what is ours, its config class, and our defaults for it."""

    trainer: type
    config: type[TrainingArguments]
    defaults: Mapping[str, Any]


ALGORITHMS: dict[str, Algorithm] = {
    # Divided by the batch's deviation, not the group's: in a group where all answers are wrong, the latter blows a
    # stray word's worth of F1 up to the size of a right answer.
    "grpo": Algorithm(Grpo, GRPOConfig, {"scale_rewards": "batch"}),
    "rloo": Algorithm(Rloo, RLOOConfig, {"beta": 0.0}),
    "remax": Algorithm(Remax, GRPOConfig, {"scale_rewards": "none", "loss_type": "dr_grpo"}),
}


def check_remax(trainer: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for arguments under which ReMax would be another method, or a TRL it is not made for."""
    fixed = {"scale_rewards": "none", "multi_objective_aggregation": "sum_then_normalize", "use_vllm": False}
    for key, only in fixed.items():
        if trainer.get(key, only) != only:
            raise RecipeError(f"trainer: {key} is {trainer[key]!r}; remax needs {only!r}: leave it out")
    if trl.__version__.split(".")[:2] != CHECKED.split("."):
        raise RecipeError(
            f"algorithm: remax is made for trl {CHECKED} and this is {trl.__version__}; install trl {CHECKED}, or take "
            "rloo, which is TRL's own"
        )
