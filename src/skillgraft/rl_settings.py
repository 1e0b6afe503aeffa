"""The settings of an `rl` stage that choose its algorithm, its questions and its judge. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from skillgraft.data.slices import parse_part
from skillgraft.errors import RecipeError
from skillgraft.settings.base import Strict
from skillgraft.settings.synthesis import EndpointSettings

JUDGE = "judge"
"""The reward that asks a model whether an answer is right."""


def _part(part: str) -> str:
    parse_part(part)
    return part


Part = Annotated[str, AfterValidator(_part)]


class RlChoices(Strict):
    """What an `rl` stage learns by, on which questions, in which order."""

    algorithm: Literal["grpo", "rloo", "remax"] = Field(
        "grpo", description="what a reward is compared with: the group's mean, the others' mean, the likeliest answer's"
    )
    documents: Path | None = Field(None, description="keep only questions on these documents")
    limit_documents: int | None = Field(None, ge=1, description="keep questions on the first so many documents only")
    part: Part | None = Field(None, description="keep questions on one of several parts of the documents: 1/2")
    order: Literal["shuffled", "easy_to_hard", "hard_to_easy"] = Field(
        "shuffled", description="of the questions in each epoch; by difficulty needs pass_rate_samples"
    )
    skip_without_variance: bool = Field(
        False, description="leave groups out of a step whose answers all have the reward that they are compared with"
    )
    judge: str | None = Field(None, description="stage, 'base' or checkpoint that the reward 'judge' asks")
    judge_endpoint: EndpointSettings | None = Field(None, description="a model behind an endpoint as judge instead")


def check_rl(name: str, stage: Any) -> None:
    """Raise for settings of an `rl` stage that contradict each other, and for a reward that pays for nothing."""
    if stage.reward is not None:
        _check_weights(f"stages.{name}.reward", stage.reward)
    if stage.rounds and "max_steps" in stage.trainer:
        raise RecipeError(f"stages.{name}: both rounds and trainer.max_steps are given; rounds holds the steps")
    if stage.order != "shuffled" and not stage.pass_rate_samples:
        raise RecipeError(f"stages.{name}.order: {stage.order} needs pass_rate_samples, which measures difficulty")
    if stage.order != "shuffled" and stage.trainer.get("shuffle_dataset"):
        raise RecipeError(f"stages.{name}: order: {stage.order} and trainer.shuffle_dataset are both given; leave one")
    if stage.skip_without_variance and stage.trainer.get("beta"):
        raise RecipeError(
            f"stages.{name}.skip_without_variance: with trainer.beta a group without variance teaches too, to stay "
            "near the start; leave one of them out"
        )
    if stage.judge is not None and stage.judge_endpoint is not None:
        raise RecipeError(f"stages.{name}: both judge and judge_endpoint are given; the reward asks one of them")
    asked, named = JUDGE in (stage.reward or {}), stage.judge is not None or stage.judge_endpoint is not None
    if asked and not named:
        raise RecipeError(f"stages.{name}.reward: '{JUDGE}' needs judge: CHECKPOINT or judge_endpoint: {{url, model}}")
    if named and not asked:
        raise RecipeError(f"stages.{name}: a judge is given that no reward asks; add reward: {{{JUDGE}: 1.0}}")


def _check_weights(where: str, reward: Mapping[str, float]) -> None:
    """Raise for weights with which nothing is paid for.

    A negative weight takes away for what is measured. Alone it is refused for the rewards of Skillgraft, since the best
    answer would then be a wrong one, and allowed for a function of one's own, which may measure what is not wanted.
    """
    if not reward:
        raise RecipeError(f"{where}: is empty; name rewards, such as {{containment: 1.0}}, or leave it out")
    said = ", ".join(f"{each}: {weight:g}" for each, weight in reward.items())
    if not all(map(math.isfinite, reward.values())):
        raise RecipeError(f"{where}: {said}: weights must be finite numbers")
    if not any(weight > 0 or (weight < 0 and "." in each) for each, weight in reward.items()):
        raise RecipeError(
            f"{where}: {said}: no weight is above 0, so that nothing is paid for; give what is wanted a positive one "
            "(alone, only a function of your own may have a negative weight)"
        )


def endpoint_of(stage: Any) -> EndpointSettings | None:
    """Return the endpoint that a stage asks, if it asks one."""
    fields: Mapping[str, Any] = type(stage).model_fields
    return next((getattr(stage, name) for name in ("endpoint", "judge_endpoint") if name in fields), None)
