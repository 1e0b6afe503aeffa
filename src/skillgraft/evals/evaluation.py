"""Schema of an evaluation, as `evaluation.json` holds it and a report shows it: rows, comparisons, examples.

Scores are shares in [0, 1] unless a metric says otherwise, seconds are wall-clock seconds, and every interval is a 95%
interval.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Interval(TypedDict):
    """A mean with its 95% percentile bootstrap interval over `n` observations."""

    mean: float
    low: float
    high: float
    n: int


class Cost(TypedDict):
    """Cost of one row of a score table: seconds, and floating-point operations of training."""

    train_seconds: float
    train_flops: float
    eval_seconds: float | None
    eval_flops: NotRequired[float]


class Retained(TypedDict):
    """One measure of retention, and its paired change from the row before adapting (None where there is none)."""

    task: str
    metric: str
    score: Interval
    change: Interval | None
    less_is_better: bool


class EvaluationRow(TypedDict):
    """One row of a score table.

    `role` is "base", "sft", "grafted", "control", "open_book", "few_shot" or "other".
    """

    model: str  # the stage that made it, and for open_book and few_shot what is in the prompt
    label: str  # what a reader calls it, unique in its table: "SFT + skill (λ = 1)"
    role: str
    note: str  # what the row is, in one sentence
    scores: dict[str, Interval]  # by metric: "f1", "containment", "exact_match" or a domain's own
    retention: Interval | None
    answer_words: float | None  # mean words per answer
    seconds: float | None  # of the evaluation
    cost: Cost
    retained: NotRequired[list[Retained]]  # retention by task, and held-out text
    prompt_tokens: NotRequired[float]  # mean
    found: NotRequired[dict[str, Interval]]  # of retrieval: "recall", "answer_in_context"
    on: NotRequired[str]  # the label of the row that a skill or control was put on


class Comparison(TypedDict):
    """A paired bootstrap over documents: the scores of `row` minus those of `against` (both are labels)."""

    metric: str
    row: str
    against: str
    difference: float
    low: float
    high: float
    kept: NotRequired[bool | None]  # of a retention comparison: whether the evaluation counts the score as kept


class Answer(TypedDict):
    """One row's answer to an example's question, and its scores."""

    model: str  # the row's label
    text: str
    exact_match: NotRequired[float]  # these three of the knowledge domain; another has its own metrics instead
    f1: NotRequired[float]
    containment: NotRequired[float]


class Example(TypedDict):
    """One question with its gold answers and every row's answer."""

    document: str
    title: str
    question: str
    gold: list[str]
    answers: list[Answer]


class Evaluation(TypedDict):
    """One eval stage: its score table, its paired comparisons and some of its answers."""

    stage: str
    questions: int
    documents: int
    rows: list[EvaluationRow]
    comparisons: list[Comparison]
    examples: list[Example]
    retention_against: NotRequired[str]  # label of the row that `retained` changes are taken against
