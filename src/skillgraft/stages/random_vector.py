"""The stage kind `random_vector`: the control that has a skill's norm in every tensor and no direction of its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from skillgraft.settings.base import Ref, Settings
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.kind import StageKind, Stages
from skillgraft.stages.row_labels import RowLabel
from skillgraft.stages.skill_result import skill_result


class RandomVectorStage(Settings):
    """The control: a random vector with the skill's norm in every tensor."""

    kind: Literal["random_vector"] = Field(description="make the control: a random vector like a skill")
    skill: Annotated[str, Ref("skill")] = Field(description="stage, skill directory or name whose norms are taken")
    seed: int | None = Field(None, ge=0, lt=2**32, description="default: the recipe's")


def run(settings: RandomVectorStage, context: Context) -> StageResult:
    """Make the random vector."""
    from skillgraft.arithmetic import random_vector

    seed = context.seed if settings.seed is None else settings.seed
    return skill_result(random_vector(context.inputs[settings.skill], context.out, seed), context.out)


def label(stages: Stages, skill: str) -> RowLabel:
    """Label the vector as the random control."""
    return RowLabel("control", "random vector", "control: random direction, the skill's norm in each tensor")


RANDOM_VECTOR = StageKind(settings=RandomVectorStage, makes="skill", run=run, label=label)
