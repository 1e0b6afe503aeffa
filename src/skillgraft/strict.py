"""What every class of a recipe is built on. Loads no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

BASE = "base"
"""The name by which stages refer to the recipe's base model."""


class Strict(BaseModel):
    """Unknown keys are errors, values cannot be changed, fields go by alias or name."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, defer_build=True)
