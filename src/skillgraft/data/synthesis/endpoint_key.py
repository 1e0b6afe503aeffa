"""The key of an endpoint, out of the environment."""

from __future__ import annotations

import os

from skillgraft.errors import RecipeError


def read_key(variable: str | None) -> str | None:
    """Return the key in the environment variable `variable`; `RecipeError` where there is none."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RecipeError(f"key_variable: the environment has no {variable}; set it to the endpoint's key")
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(f"key_variable: {variable} holds characters that no header can carry")
    return key
