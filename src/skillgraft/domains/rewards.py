"""Rewards without a judge: functions `(RewardInput) -> float`, mixed by weights in the recipe. Loads no torch.

The default mix pays for knowing (containment, token F1, exact match) and takes away for length, because containment
alone is won by saying everything. `brevity` is flat up to `FREE_WORDS` words: where it already bites on ordinary
sentences, RL learns to be short and wrong before it learns to recall (measured, see docs/log).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from skillgraft.data.metrics import METRICS, Metric
from skillgraft.data.words import count_words
from skillgraft.domains.kind import Reward, RewardInput
from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.settings.synthesis import JUDGE
from skillgraft.support.extensions import with_extensions

FREE_WORDS = 20
"""Words that an answer may have before `brevity` takes anything away."""


def brevity(given: RewardInput) -> float:
    """Return 0 for an answer of 1 to `FREE_WORDS` words, falling linearly to -1 at twice that; -1 for an empty one."""
    words = count_words(given.completion)
    if words == 0:
        return -1.0
    return -min(1.0, max(0, words - FREE_WORDS) / FREE_WORDS)


def metric_reward(metric: Metric) -> Reward:
    """Return a metric as a reward."""
    return lambda given: metric(given.completion, given.answers)


BUILTIN: dict[str, Reward] = {**{name: metric_reward(metric) for name, metric in METRICS.items()}, "brevity": brevity}
"""Rewards by name. A new one is a function and a line here."""

REWARDS = with_extensions("rewards", BUILTIN)

DEFAULT_MIX: dict[str, float] = {"containment": 0.5, "f1": 0.4, "exact_match": 0.1, "brevity": 0.2}


def get_reward(name: str, own: Mapping[str, Reward] | None = None) -> Reward:
    """Return the reward called `name`: one of a domain's `own`, of `REWARDS`, or `package.module.function`.

    Raises:
        RecipeError: no such reward; the message lists those that exist.
    """
    rewards = {**REWARDS, **(own or {})}
    if name in rewards:
        return rewards[name]
    module, _, function = name.rpartition(".")
    if not module:
        raise RecipeError(
            f"reward '{name}' is not known{did_you_mean(name, [*rewards, JUDGE])}; "
            "a function of your own is named by its dotted path, package.module.function"
        )
    try:
        reward = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"reward '{name}' cannot be imported: {error}; expected an importable function "
            "(RewardInput) -> float, see skillgraft.domains.kind"
        ) from error
    if not callable(reward):
        raise RecipeError(f"reward '{name}' is a {type(reward).__name__}, expected a function")
    return reward
