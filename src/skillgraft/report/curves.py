"""Training stages as the templates need them: each headline metric as a line chart with its words."""

from __future__ import annotations

from typing import Any

from skillgraft.report.charts import Point, line_chart
from skillgraft.report.facts import Training
from skillgraft.support.formatting import count, duration, finite, one_decimal, significant

UNNAMED_METRICS = 4  # drawn where a stage names no headline metrics

# metric -> (name, unit, explanation)
CURVE_WORDS = {
    "loss": ("Loss", "nats per token", ""),
    "reward": ("Reward", "mean per step", "What RL raises."),
    "share_without_variance": (
        "Groups without variance",
        "share of prompts",
        "Prompts whose answers all got one reward: they teach nothing.",
    ),
    "completion_words": ("Answer length", "words", "A reward that moves with length alone is a formatting habit."),
    "completion_tokens": ("Answer length", "tokens", "A reward that moves with length alone is a formatting habit."),
    "mean_token_accuracy": ("Token accuracy", "share of tokens", ""),
    "kl": ("KL to the reference", "nats per token", "How far the policy has moved."),
    "entropy": ("Entropy", "nats per token", ""),
    "learning_rate": ("Learning rate", "", ""),
    "grad_norm": ("Gradient norm", "", ""),
    "eval_loss": ("Held-out loss", "nats per token", ""),
}


def training_view(training: Training) -> dict[str, Any]:
    """Return a stage's facts as text and its charts; a metric without a finite point is left out."""
    metrics = training["headline"] or _metrics(training)[:UNNAMED_METRICS]
    charts = [_chart(metric, _points(training, metric)) for metric in metrics]
    tokens = training["tokens"]
    return {
        "stage": training["stage"],
        "kind": training["kind"],
        "duration": duration(training["seconds"]),
        "tokens": None if tokens is None else count(tokens),
        "rate": one_decimal(tokens / training["seconds"]) if tokens and training["seconds"] else None,
        "steps": count(len(training["curve"])),
        "charts": [chart for chart in charts if chart],
    }


def _chart(metric: str, points: list[Point]) -> dict[str, Any] | None:
    chart = line_chart(points)
    if chart is None:
        return None
    name, unit, note = CURVE_WORDS.get(metric, (metric.replace("_", " "), "", ""))
    ends = {
        end: {"value": significant(value), "step": count(step)}
        for end, (step, value) in (("minimum", chart.minimum), ("maximum", chart.maximum), ("last", chart.last))
    }
    return {"name": name, "unit": unit, "note": note, "drawing": chart, **ends}


def _points(training: Training, metric: str) -> list[Point]:
    pairs = [(finite(point.get("step", at)), finite(point.get(metric))) for at, point in enumerate(training["curve"])]
    return sorted(((step, value) for step, value in pairs if step is not None and value is not None), key=_step)


def _step(point: Point) -> float:
    return point[0]


def _metrics(training: Training) -> list[str]:
    names = dict.fromkeys(name for point in training["curve"] for name in point)
    return [name for name in names if name not in ("step", "epoch")]
