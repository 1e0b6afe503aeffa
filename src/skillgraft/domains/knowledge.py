"""The knowledge domain: closed-book questions about documents that the model was fine-tuned on. Loads no torch."""

from __future__ import annotations

from typing import Any

from skillgraft.data.metrics import METRICS
from skillgraft.data.tasks import Task, read_questions
from skillgraft.domains.kind import Domain
from skillgraft.domains.rewards import DEFAULT_MIX, REWARDS


def prompt(tokenizer: Any, task: Task) -> Any:
    """Return the closed-book prompt of a question, as `models.prompts.as_prompt` makes it."""
    from skillgraft.models.prompts import as_prompt

    return as_prompt(tokenizer, task.prompt)


KNOWLEDGE = Domain(
    name="knowledge",
    read_tasks=read_questions,
    prompt=prompt,
    rewards=REWARDS,
    default_reward=DEFAULT_MIX,
    metrics=METRICS,
    solved=METRICS["containment"],
)
