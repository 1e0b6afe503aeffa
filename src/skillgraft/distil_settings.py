"""The settings of `distil` and `mix` stages: self-distillation with the document in the teacher's context. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from skillgraft.errors import RecipeError
from skillgraft.settings.base import BASE, Strict

TeacherSees = Literal["document", "answer", "both"]
SEES = "what is put before the teacher: the question's document, its gold answer as an example, or both"

LONGEST_ANSWER = 64
"""Default of `trainer.max_completion_length`, in tokens."""


class DistilStage(Strict):
    """On-policy self-distillation: the model learns, without a document, what it says with the document in context."""

    kind: Literal["distil"] = Field(description="learn from oneself with the document in context (SDFT)")
    from_: str = Field(alias="from", description="stage, 'base' or checkpoint directory: student and first teacher")
    documents: Path = Field(description="folder of .md/.txt, or JSONL with id, title, text")
    limit_documents: int | None = Field(None, ge=1, description="learn the first so many documents only")
    questions: Path | None = Field(
        None, description="JSONL with document, question, answers; absent: the student tells what a title is about"
    )
    teacher_sees: TeacherSees = Field("both", description=SEES)
    teacher: Literal["ema", "start"] = Field(
        "ema", description="the teacher's weights: a moving average of the student's, or those of the start"
    )
    teacher_rate: float = Field(0.01, gt=0, le=1, description="share of the student in the average after each step")
    skip_tokens: int = Field(0, ge=0, description="first tokens of every answer that carry no loss")
    lora: dict[str, Any] | None = Field(None, description="arguments of PEFT's LoraConfig; absent: all weights")
    trainer: dict[str, Any] = Field(
        {}, description="arguments of TRL's DistillationConfig; beta: 0 for forward, 1 for reverse KL"
    )


class MixStage(Strict):
    """Answers to train on, mixed word by word from what a model says with and without the fact in context (MixSD)."""

    kind: Literal["mix"] = Field(description="write answers near to what the model would say itself (MixSD)")
    model: str = Field(BASE, description="stage, 'base' or checkpoint that writes: the one that will be trained")
    questions: Path = Field(description="JSONL with document, question, answers")
    documents: Path | None = Field(None, description="folder of .md/.txt, or JSONL with id, title, text")
    limit_documents: int | None = Field(None, ge=1, description="keep questions on the first so many documents only")
    teacher_sees: TeacherSees = Field("answer", description=SEES)
    naive_share: float = Field(
        0.3, ge=0, le=1, description="chance of a token to come from the model that sees the question alone (λ)"
    )
    attempts: int = Field(11, ge=1, description="tries at an answer that contains the gold one; without one: dropped")
    temperature: float = Field(0.0, ge=0, le=10, description="0: the likeliest token each time")
    max_new_tokens: int = Field(32, ge=1, description="longest answer, in tokens")
    batch_size: int = Field(32, ge=1, description="answers written at once")


def check_distil(name: str, stage: DistilStage | MixStage) -> None:
    """Raise for a stage whose teacher would see no more than its student."""
    if isinstance(stage, DistilStage):
        if stage.questions is None and stage.teacher_sees == "answer":
            raise RecipeError(f"stages.{name}.teacher_sees: an answer needs questions; document is what is left")
        if stage.teacher == "start" and "teacher_rate" in stage.model_fields_set:
            raise RecipeError(f"stages.{name}.teacher_rate: teacher: start never moves; leave it out")
        longest = stage.trainer.get("max_completion_length", LONGEST_ANSWER)
        if isinstance(longest, int) and 0 < longest <= stage.skip_tokens:
            raise RecipeError(
                f"stages.{name}.skip_tokens: {stage.skip_tokens} of at most {longest} tokens leaves none to learn from"
            )
    elif stage.documents is None and (stage.teacher_sees != "answer" or stage.limit_documents):
        field = "limit_documents" if stage.limit_documents else f"teacher_sees: {stage.teacher_sees}"
        raise RecipeError(f"stages.{name}: {field} needs documents")
