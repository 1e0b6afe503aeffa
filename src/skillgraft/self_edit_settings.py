"""The settings of a `self_edit` stage: SEAL's outer loop, which trains the writer of renderings. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from skillgraft.data.documents import Document, Question
from skillgraft.errors import RecipeError
from skillgraft.settings.base import Strict


class LearnSettings(Strict):
    """How one passage is learnt from one self-edit, to score it: LoRA, thrown away after the questions."""

    lora: dict[str, Any] = Field({"r": 32, "lora_alpha": 64}, description="arguments of PEFT's LoraConfig")
    trainer: dict[str, Any] = Field(
        {"num_train_epochs": 10, "learning_rate": 1e-3, "per_device_train_batch_size": 1, "warmup_steps": 0},
        description="arguments of TRL's SFTConfig",
    )


class SelfEditStage(Strict):
    """A writer of renderings by ReST-EM: of several self-edits of a passage the best measured is kept and learnt."""

    kind: Literal["self_edit"] = Field(description="train a model to write renderings that are learnt well (SEAL)")
    from_: str = Field(alias="from", description="stage, 'base' or checkpoint directory: the first writer")
    documents: Path = Field(description="passages: folder of .md/.txt, or JSONL with id, title, text")
    limit_documents: int | None = Field(None, ge=1, description="use the first so many documents only")
    questions: Path = Field(description="JSONL with document, question, answers: they score a self-edit")
    rounds: int = Field(2, ge=1, description="rounds; each has its own equal slice of the documents")
    style: str = Field("implications", description="prompt file that asks for a self-edit")
    prompts: Path | None = Field(None, description="folder of prompt files of your own")
    samples: int = Field(5, ge=1, description="self-edits of each passage")
    keep: int = Field(1, ge=1, description="best of them that the writer is trained on")
    score: Literal["containment", "f1", "exact_match"] = Field(
        "containment", description="mean over the passage's questions, closed-book, after learning the self-edit"
    )
    temperature: float = Field(1.0, ge=0, le=10, description="of sampling self-edits")
    top_p: float = Field(0.95, gt=0, le=1, description="probability mass that words are drawn from")
    max_new_tokens: int = Field(512, ge=1, description="longest self-edit, in tokens")
    batch_size: int = Field(8, ge=1, description="self-edits written at once")
    split_lines: bool = Field(True, description="each line of a self-edit is learnt as a text of its own")
    max_answer_tokens: int = Field(32, ge=1, description="longest answer to a question, in tokens")
    learn: LearnSettings = Field(
        LearnSettings.model_validate({}), description="how a passage and its self-edit are learnt to be scored"
    )
    lora: dict[str, Any] | None = Field(
        None, description="arguments of PEFT's LoraConfig for the writer; absent: all weights"
    )
    trainer: dict[str, Any] = Field({}, description="arguments of TRL's SFTConfig for the writer")


def check_self_edit(name: str, stage: SelfEditStage) -> None:
    """Raise for a stage that would keep all that it samples: nothing would be chosen."""
    if stage.keep >= stage.samples:
        raise RecipeError(
            f"stages.{name}.keep: {stage.keep} of {stage.samples} samples is no choice; raise samples or lower keep"
        )


def asked_documents(documents: Sequence[Document], questions: Sequence[Question], rounds: int) -> list[Document]:
    """Return the documents that questions are about; `RecipeError` for fewer of them than rounds."""
    asked = {question.document for question in questions}
    used = [document for document in documents if document.id in asked]
    if len(used) < rounds:
        raise RecipeError(
            f"rounds: {len(used)} documents have questions, fewer than {rounds} rounds; give more, or lower it"
        )
    return used
