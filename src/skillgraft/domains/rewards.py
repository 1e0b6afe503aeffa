"""Rewards without a judge: plain functions `(completion, answers) -> float`, mixed by weights in the recipe.

The default mix pays for knowing (containment, token F1, exact match) and takes away for length, because containment
alone is won by saying everything. `brevity` is flat up to `FREE_WORDS` words: where it already bites on ordinary
sentences, RL learns to be short and wrong before it learns to recall (measured, see PAPERS.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from skillgraft.data.metrics import METRICS
from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.settings.synthesis import JUDGE

Reward = Callable[[str, Sequence[str]], float]

FREE_WORDS = 20
"""Words that an answer may have before `brevity` takes anything away."""


def brevity(completion: str, answers: Sequence[str]) -> float:
    """Return 0 for an answer of 1 to `FREE_WORDS` words, falling linearly to -1 at twice that; -1 for an empty one."""
    words = len(completion.split())
    if words == 0:
        return -1.0
    return -min(1.0, max(0, words - FREE_WORDS) / FREE_WORDS)


REWARDS: dict[str, Reward] = {**METRICS, "brevity": brevity}

DEFAULT_MIX: dict[str, float] = {"containment": 0.5, "f1": 0.4, "exact_match": 0.1, "brevity": 0.2}


def get_reward(name: str) -> Reward:
    """Return the reward called `name`: a key of `REWARDS`, or `package.module.function` of the user's own.

    Raises:
        RecipeError: no such reward; the message lists those that exist.
    """
    if name in REWARDS:
        return REWARDS[name]
    module, _, function = name.rpartition(".")
    if not module:
        raise RecipeError(
            f"reward '{name}' is not known{did_you_mean(name, [*REWARDS, JUDGE])}; "
            "a function of your own is named by its dotted path, package.module.function"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"reward '{name}' cannot be imported: {error}; expected an importable function "
            "(completion: str, answers: Sequence[str]) -> float"
        ) from error
    if not callable(found):
        raise RecipeError(f"reward '{name}' is a {type(found).__name__}, expected a function")
    return found
