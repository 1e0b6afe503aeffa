"""Checking a training stage's pass-through settings before anything runs."""

from __future__ import annotations

from pathlib import Path

from skillgraft import config
from skillgraft.domains.rewards import DEFAULT_MIX, get_reward
from skillgraft.errors import RecipeError
from skillgraft.regime_settings import check_text
from skillgraft.rl_settings import JUDGE
from skillgraft.train.distil import distil_arguments
from skillgraft.train.lora import lora_config
from skillgraft.train.rl import rl_arguments
from skillgraft.train.sft import sft_arguments
from skillgraft.train.together import check_shares
from skillgraft.train.tracking import check_trackers

Trains = config.SftStage | config.RlStage | config.SinglePassageStage | config.DistilStage | config.SelfEditStage


def check_stage(stage: Trains, count: int = 1) -> None:
    """Raise `RecipeError` for a key or value of `trainer:`, `lora:`, `text:` or `reward:` that is refused.

    `count` processes are going to train it together.
    """
    check_trackers(stage.trainer)
    if stage.lora is not None:
        lora_config(stage.lora)
    if isinstance(stage, config.RlStage):
        mix = stage.reward or DEFAULT_MIX
        for name in mix:
            if name != JUDGE:
                get_reward(name)
        args = rl_arguments(mix, stage.trainer, stage.lora is not None, Path("unused"), 0, stage.algorithm)
        check_shares(args, count)
        if count > 1 and stage.skip_without_variance:
            raise RecipeError(
                f"skip_without_variance: {count} processes would keep different numbers of answers; leave it out, or "
                "start the run without a launcher"
            )
    elif isinstance(stage, config.DistilStage):
        distil_arguments(stage.trainer, stage.lora is not None, Path("unused"), 0)
    elif isinstance(stage, config.SelfEditStage):
        lora_config(stage.learn.lora)
        sft_arguments(stage.learn.trainer, Path("unused"), 0)
        sft_arguments(stage.trainer, Path("unused"), 0)
    else:
        arguments = sft_arguments(stage.trainer, Path("unused"), 0)
        check_text(stage.text, arguments.max_length)
        if isinstance(stage, config.SftStage):
            check_shares(arguments, count)
