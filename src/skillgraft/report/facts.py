"""The facts that a report is made of: plain JSON data, of which `report.json` is a copy and `report.html` a view.

Every list may be empty; the page then leaves its section out. Scores are shares in [0, 1] unless a metric says
otherwise, seconds are wall-clock seconds, and every interval is a 95% interval. A number that is missing is `None`;
a number that is not finite is written to `report.json` as `null`.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from skillgraft.evals.evaluation import (
    Answer,
    Comparison,
    Cost,
    Evaluation,
    EvaluationRow,
    Example,
    Interval,
    Retained,
)

__all__ = [
    "Answer",
    "Base",
    "Cell",
    "Comparison",
    "Cost",
    "Evaluation",
    "EvaluationRow",
    "Example",
    "Facts",
    "Geometry",
    "Interval",
    "Machine",
    "Pair",
    "PairMeasures",
    "Retained",
    "RunsFacts",
    "ScaledRow",
    "Skill",
    "Stage",
    "StageRecord",
    "Sweep",
    "Training",
    "Vector",
    "VectorMeasures",
]


class StageRecord(TypedDict):
    """Record that a finished stage left (`stage.json`), with the directory where it was found."""

    kind: str
    key: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    seconds: float
    facts: dict[str, Any]
    directory: str


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


class RunsFacts(TypedDict):
    """Facts of several runs by the names that their page calls them."""

    runs: dict[str, Facts]
