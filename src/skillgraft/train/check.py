"""Checking a training stage's pass-through settings before anything runs."""

from __future__ import annotations

from trl import GRPOConfig, SFTConfig

from skillgraft import config
from skillgraft.domains.rewards import get_reward
from skillgraft.train.common import check_trainer_keys
from skillgraft.train.lora import lora_config


def check_stage(stage: config.SftStage | config.RlStage) -> None:
    """Raise `RecipeError` for a key of `trainer:`, `lora:` or `reward:` that does not exist."""
    check_trainer_keys(SFTConfig if stage.kind == "sft" else GRPOConfig, stage.trainer)
    if stage.lora is not None:
        lora_config(stage.lora)
    if isinstance(stage, config.RlStage):
        for name in stage.reward or {}:
            get_reward(name)
