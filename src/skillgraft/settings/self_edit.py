"""Settings of self-edits: how a writer of renderings is sampled, scored and trained (SEAL). Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from skillgraft.settings.base import ADAPT, AdapterSettings, DataPath, PromptSettings, Settings, TrainerArguments


class LearnSettings(Settings):
    """How one passage is learnt from one self-edit, to score it: LoRA, thrown away after the questions."""

    adapt: AdapterSettings = Field({"kind": "lora", "r": 32, "lora_alpha": 64}, description=ADAPT)
    trainer: TrainerArguments = Field(
        {"num_train_epochs": 10, "learning_rate": 1e-3, "per_device_train_batch_size": 1, "warmup_steps": 0},
        description="arguments of TRL's SFTConfig",
    )


class SelfEditSettings(PromptSettings):
    """How self-edits are sampled, scored and chosen."""

    rounds: int = Field(2, ge=1, description="rounds; each has its own equal slice of the documents")
    style: str = Field("implications", description="prompt file that asks for a self-edit")
    prompts: Annotated[Path | None, DataPath()] = Field(None, description="folder of prompt files of your own")
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
