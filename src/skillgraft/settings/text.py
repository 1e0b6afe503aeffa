"""Settings that fine-tuning stages share: how documents become rows, and replay of general text. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from skillgraft.errors import RecipeError
from skillgraft.settings.base import Strict


class TextSettings(Strict):
    """How documents become the rows that are trained on."""

    chunk_tokens: int | None = Field(
        None, ge=8, description="longest row of a document, title and end included; default: trainer.max_length"
    )
    overlap_tokens: int = Field(0, ge=0, description="tokens of text that a chunk shares with the one before")
    mask_title: bool = Field(False, description="the title is read but not learnt: it carries no loss")


WHOLE = TextSettings.model_validate({})
"""Every document as long as the trainer takes it, title and all."""


class ReplaySettings(Strict):
    """General text that is trained on beside a stage's own, against forgetting."""

    text: Path = Field(description="folder of .md/.txt, one such file, or JSONL with text")
    ratio: float = Field(0.1, gt=0, le=100, description="tokens of replay for each token of the stage's own data")


def check_text(text: TextSettings, max_length: int | None) -> None:
    """Raise `RecipeError` for chunks that do not move on or that the trainer would cut off."""
    if text.chunk_tokens is not None and max_length is not None and text.chunk_tokens > max_length:
        raise RecipeError(
            f"text.chunk_tokens: {text.chunk_tokens} is more than trainer.max_length = {max_length}, which would cut "
            "the rest off; raise max_length or lower chunk_tokens"
        )
    longest = text.chunk_tokens or max_length
    if longest is not None and text.overlap_tokens >= longest:
        raise RecipeError(
            f"text.overlap_tokens: {text.overlap_tokens} leaves rows of {longest} tokens nothing new; lower it"
        )


def check_sft(name: str, stage: Any) -> None:
    """Raise for an sft stage without data or with both kinds, and for settings of the kind that it lacks."""
    if stage.documents is None and stage.questions is None:
        raise RecipeError(f"stages.{name}: neither documents nor questions are given; sft needs one of them")
    if stage.documents is not None and stage.questions is not None:
        raise RecipeError(
            f"stages.{name}: documents and questions are both given; make two sft stages of it, the second one "
            "`from` the first (`about` keeps the questions about some documents only)"
        )
    for field, given in (("answers: shuffled", stage.answers == "shuffled"), ("about", stage.about is not None)):
        if given and stage.questions is None:
            raise RecipeError(f"stages.{name}: {field} needs questions")
    if stage.limit_documents and stage.documents is None and stage.about is None:
        raise RecipeError(f"stages.{name}: limit_documents needs documents, or about")
    if stage.text != WHOLE and stage.documents is None:
        raise RecipeError(f"stages.{name}: text says how documents become rows; it needs documents")
