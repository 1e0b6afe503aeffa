"""The contract of a domain: tasks, prompts, rewards and metrics of what is to be learnt, in one object. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillgraft.data.documents import Document
from skillgraft.data.metrics import Metric
from skillgraft.data.tasks import Task


@dataclass(frozen=True)
class RewardInput:
    """What a reward sees of one answer.

    `prompt` is what the model saw (text, or a chat), `completion` its answer as text, `completion_ids` the same as
    token ids, `answers` the right ones, `task` all that the domain knows; `episode` the turns of an environment, None
    where an answer is given at once.
    """

    prompt: Any
    completion: str
    completion_ids: Sequence[int]
    answers: Sequence[str]
    task: Task | None = None
    episode: Any = None


Reward = Callable[[RewardInput], float]


@dataclass(frozen=True)
class Domain:
    """What is to be learnt.

    Attributes:
        name: what a recipe calls it.
        read_tasks: the tasks of a file, of those about some documents where they are given.
        prompt: a task as what the model sees, given the tokenizer: text, or a chat.
        rewards: by name; a recipe mixes them by weights.
        default_reward: reward name -> weight, where a recipe names none.
        metrics: by name, in the order of the table's columns.
        solved: the metric that says (1 or 0) whether a sampled answer solves its task, for pass rates.
        environment: what a model acts in over several turns; None where a task is answered at once.
    """

    name: str
    read_tasks: Callable[[Path, Sequence[Document] | None], Sequence[Task]]
    prompt: Callable[[Any, Task], Any]
    rewards: Mapping[str, Reward]
    default_reward: Mapping[str, float]
    metrics: Mapping[str, Metric]
    solved: Metric
    environment: Any = None
