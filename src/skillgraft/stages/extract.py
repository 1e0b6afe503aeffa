"""The stage kind `extract`: the skill vector v = θ_RL − θ_SFT, kept as an artifact."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from skillgraft.settings.base import Ref, Settings
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.kind import StageKind, Stages
from skillgraft.stages.row_labels import ANSWER_FORMAT, FORMAT, SKILL, RowLabel
from skillgraft.stages.skill_result import skill_result


class ExtractStage(Settings):
    """v = θ_RL − θ_SFT, kept as an artifact."""

    kind: Literal["extract"] = Field(description="take a skill out of two checkpoints")
    rl: Annotated[str, Ref("checkpoint", adapter=True)] = Field(
        description="the rl stage, or a checkpoint directory or PEFT adapter after RL"
    )
    sft: Annotated[str, Ref("checkpoint")] = Field(description="the checkpoint that RL started from")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="what the skill is stored in")
    domain: str | None = Field(None, description="what the skill was learnt on, for its manifest")
    license: str | None = Field(None, description="SPDX identifier, for its manifest")


def run(settings: ExtractStage, context: Context) -> StageResult:
    """Extract the skill."""
    from skillgraft.arithmetic import extract

    skill = extract(
        context.inputs[settings.rl],
        context.inputs[settings.sft],
        context.out,
        dtype=settings.dtype,
        domain=settings.domain,
        recipe=context.recipe,
        seed=context.seed,
        license=settings.license,
        progress=context.progress,
    )
    return skill_result(skill, context.out)


def label(stages: Stages, skill: str) -> RowLabel:
    """Label the vector a skill, or the answer-format control."""
    return FORMAT if stages[skill].settings.domain == ANSWER_FORMAT else SKILL


EXTRACT = StageKind(settings=ExtractStage, makes="skill", run=run, version=2, label=label)
