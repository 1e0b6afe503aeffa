"""Checking a training stage's pass-through settings before anything runs."""

from __future__ import annotations

from pathlib import Path

from skillgraft import config
from skillgraft.domains.rewards import DEFAULT_MIX, get_reward
from skillgraft.regime_settings import check_text
from skillgraft.rl_settings import JUDGE
from skillgraft.train.distil import distil_arguments
from skillgraft.train.lora import lora_config
from skillgraft.train.rl import rl_arguments
from skillgraft.train.sft import sft_arguments
from skillgraft.train.tracking import check_trackers

Trains = config.SftStage | config.RlStage | config.SinglePassageStage | config.DistilStage | config.SelfEditStage


def check_stage(stage: Trains) -> None:
    """Raise `RecipeError` for a key or value of `trainer:`, `lora:`, `text:` or `reward:` that is refused."""
    check_trackers(stage.trainer)
    if stage.lora is not None:
        lora_config(stage.lora)
    if isinstance(stage, config.RlStage):
        mix = stage.reward or DEFAULT_MIX
        for name in mix:
            if name != JUDGE:
                get_reward(name)
        rl_arguments(mix, stage.trainer, stage.lora is not None, Path("unused"), 0, stage.algorithm)
    elif isinstance(stage, config.DistilStage):
        distil_arguments(stage.trainer, stage.lora is not None, Path("unused"), 0)
    elif isinstance(stage, config.SelfEditStage):
        lora_config(stage.learn.lora)
        sft_arguments(stage.learn.trainer, Path("unused"), 0)
        sft_arguments(stage.trainer, Path("unused"), 0)
    else:
        check_text(stage.text, sft_arguments(stage.trainer, Path("unused"), 0).max_length)
