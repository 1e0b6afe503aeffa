"""The facts that a report is made of: plain JSON data, of which `report.json` is a copy and `report.html` a view.

Every list may be empty; the page then leaves its section out. Scores are shares in [0, 1] unless a metric says
otherwise, seconds are wall-clock seconds, and every interval is a 95% interval. A number that is missing is `None`;
a number that is not finite is written to `report.json` as `null`.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Interval(TypedDict):
    """A mean with its 95% interval over `n` questions."""

    mean: float
    low: float
    high: float
    n: int


class Cost(TypedDict):
    """Cost of one row of a score table: seconds, and floating-point operations of training."""

    train_seconds: float
    train_flops: float
    eval_seconds: float
    eval_flops: NotRequired[float]


class Retained(TypedDict):
    """One measure of retention, and its paired change from the row before adapting (None where there is none)."""

    task: str
    metric: str
    score: Interval
    change: Interval | None
    less_is_better: bool


class ScoreRow(TypedDict):
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
    rows: list[ScoreRow]
    comparisons: list[Comparison]
    examples: list[Example]
    retention_against: NotRequired[str]  # label of the row that `retained` changes are taken against


class Training(TypedDict):
    """One training stage. Each point of `curve` has `step` and any metrics; `headline` names those to draw."""

    stage: str
    kind: str  # "sft" or "rl"
    seconds: float
    tokens: int | None
    curve: list[dict[str, float]]
    headline: list[str]


class Stage(TypedDict):
    """One stage of the run, in the order of the plan."""

    name: str
    kind: str
    seconds: float
    cached: bool
    key: str  # hash that addresses the stage's output
    directory: str
    data: NotRequired[dict[str, str]]  # hashes of the documents and questions that it read


class Skill(TypedDict):
    """One skill artifact. `norm` is ‖v‖; `survived_rounding` the share of λ·v left after the output's rounding."""

    stage: str
    form: str
    rank: int | None
    size_bytes: int
    norm: float
    scale: float | None
    survived_rounding: float | None
    base: str
    domain: str | None


class Sweep(TypedDict):
    """Rows of one evaluation that differ in the skill's scale alone."""

    evaluation: str
    target: str
    skill: str
    points: list[ScaledRow]


class ScaledRow(TypedDict):
    """One point of a sweep: the scale and the label of its row; the target itself has 0."""

    scale: float
    row: str


class VectorMeasures(TypedDict):
    """‖v‖, that relative to the base, and the mean effective rank of the matrices, where they were computed."""

    norm: float
    relative_norm: float | None
    effective_rank: NotRequired[float]


class Vector(VectorMeasures):
    """One vector of parameters: "SFT", "RL" or "skill", and the stage or skill that it is of."""

    label: str
    stage: str
    zeros: float  # share of parameters that it leaves alone


class PairMeasures(TypedDict):
    """The cosine of two vectors; None where one of them is zero."""

    cosine: float | None


class Pair(PairMeasures):
    """Two vectors: z is the cosine in standard deviations by chance."""

    one: str
    other: str
    z: float | None
    same_sign: float | None
    sentence: str


class Cell(TypedDict):
    """The measures of one kind of module in one layer, in the order of the vectors and pairs."""

    layer: int
    kind: str
    vectors: list[VectorMeasures]
    pairs: list[PairMeasures]


class Geometry(TypedDict):
    """Geometry of the change by layer and kind of module; if unknown, `missing` holds the reason."""

    keys: list[str]  # of the stages that were compared
    ranks: bool
    vectors: list[Vector]
    pairs: list[Pair]
    cells: list[Cell]
    missing: str


class Base(TypedDict):
    """The pre-trained model: what the recipe calls it, and the fingerprint of its weights."""

    name: str
    fingerprint: str


class Machine(TypedDict):
    """The machine that the run was made on."""

    cpu: str
    cores: int
    memory_gib: float
    device: str
    precision: str


class Facts(TypedDict):
    """Facts of a report: everything that it shows."""

    title: str
    created: str  # ISO 8601
    skillgraft_version: str
    recipe_path: str
    recipe_yaml: str  # resolved
    command: str  # that makes the run again
    machine: Machine
    versions: dict[str, str]
    evaluations: list[Evaluation]
    training: list[Training]
    stages: list[Stage]
    skills: list[Skill]
    base: NotRequired[Base]
    sweeps: NotRequired[list[Sweep]]
    geometry: NotRequired[Geometry]
