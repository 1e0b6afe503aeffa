"""Checking a training stage's pass-through settings before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from skillgraft.adapters.lora import check_fit, empty_model, lora_config
from skillgraft.data.replay import read_replay
from skillgraft.domains.rewards import DEFAULT_MIX, get_reward
from skillgraft.errors import RecipeError
from skillgraft.pipeline.plan import PlannedStage, sft_data
from skillgraft.recipe import schema
from skillgraft.rl_settings import JUDGE
from skillgraft.settings.text import check_text
from skillgraft.train.common import load_tokenizer
from skillgraft.train.data_parallel import check_shares
from skillgraft.train.distill import distil_arguments
from skillgraft.train.rl import rl_arguments
from skillgraft.train.sft import sft_arguments, sft_rows
from skillgraft.train.tracking import check_trackers


def check_stage(planned: PlannedStage, start: Path | None, count: int = 1) -> None:
    """Raise for what is refused of a stage's `trainer:`, `lora:`, `text:`, `reward:`, and for too little replay text.

    `start` is the checkpoint that the stage's models descend from, None where it is not known; `count` processes are
    going to train it together.

    Raises:
        RecipeError: a key or value that is refused, or a module that the model has not.
        DataError: less replay text than is asked for.
        TrainingError: beside replay, rows that do not fit into `trainer.max_length`.
    """
    stage = planned.stage
    check_trackers(stage.trainer)
    for given in (stage.lora, stage.learn.lora if isinstance(stage, schema.SelfEditStage) else None):
        if given is not None:
            settings = lora_config(given)
            if start is not None and (shape := empty_model(start)) is not None:
                check_fit(shape, settings)
    if isinstance(stage, schema.RlStage):
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
    elif isinstance(stage, schema.DistilStage):
        distil_arguments(stage.trainer, stage.lora is not None, Path("unused"), 0)
    elif isinstance(stage, schema.SelfEditStage):
        sft_arguments(stage.learn.trainer, Path("unused"), 0)
        sft_arguments(stage.trainer, Path("unused"), 0)
    else:
        arguments = sft_arguments(stage.trainer, Path("unused"), 0)
        check_text(stage.text, arguments.max_length)
        if isinstance(stage, schema.SftStage):
            check_shares(arguments, count)
            if start is not None:
                _check_replay(stage, planned.inputs, start, arguments.max_length)


def _check_replay(stage: schema.SftStage, inputs: Mapping[str, Path], start: Path, longest: int | None) -> None:
    """Raise where there is less replay text than the stage asks for, if all that it trains on is there already."""
    if stage.replay is None:
        return
    documents, questions = sft_data(stage, inputs)
    if documents or questions:
        replay = (read_replay(stage.replay.text), stage.replay.ratio)
        sft_rows(load_tokenizer(start), documents, questions, longest, text=stage.text, replay=replay)
