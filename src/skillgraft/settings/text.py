"""Settings of fine-tuning data: how documents become training examples, and replay of general text. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from skillgraft.errors import RecipeError
from skillgraft.settings.base import DataPath, Settings


class TextSettings(Settings):
    """How documents become training examples."""

    chunk_tokens: int | None = Field(
        None, ge=8, description="longest example of a document, title and end included; default: trainer.max_length"
    )
    overlap_tokens: int = Field(0, ge=0, description="tokens of text that a chunk shares with the one before")
    mask_title: bool = Field(False, description="the title is read but not learnt: it carries no loss")


WHOLE = TextSettings.model_validate({})
"""Default: whole documents, truncated to `trainer.max_length`."""


class ReplaySettings(Settings):
    """General text that is trained on beside a stage's own, against forgetting."""

    text: Annotated[Path, DataPath()] = Field(description="folder of text files, one such file, or a table with text")
    ratio: float = Field(0.1, gt=0, le=100, description="tokens of replay for each token of the stage's own data")


def check_text(text: TextSettings, max_length: int | None) -> None:
    """Raise `RecipeError` for chunks that do not advance or that the trainer would truncate."""
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
