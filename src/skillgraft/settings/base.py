"""What every class of a recipe is built on. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

BASE = "base"
"""The name by which stages refer to the recipe's base model."""


class Strict(BaseModel):
    """Unknown keys are errors, values cannot be changed, fields go by alias or name."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, defer_build=True)


Settings = TypeVar("Settings", bound=Strict)


def changed(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return `settings` with those of `values` that differ; what a recipe left out stays left out."""
    return settings.model_copy(
        update={name: value for name, value in values.items() if value != getattr(settings, name)}
    )
