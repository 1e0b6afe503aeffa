"""λ behaviour: the scores of one combination of target and skill at several scales, as curves with interval bands."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from skillgraft.report.change_map import skills_of
from skillgraft.report.charts import band_chart
from skillgraft.report.facts import Evaluation, EvaluationRow, Interval, StageRecord, Sweep
from skillgraft.report.wording import metric_name, metric_order
from skillgraft.support.formatting import finite, score, significant


def sweeps(records: Mapping[str, StageRecord], evaluations: Sequence[Evaluation]) -> list[Sweep]:
    """Return, for each evaluation, the models that differ in λ alone: `points` of scale and row label.

    The target itself, where it was evaluated, is the point at 0.
    """
    groups: dict[str, list[tuple[float, str]]] = {}
    names: dict[str, tuple[str, str]] = {}
    for name, record in records.items():
        if not (skills := skills_of(record)):
            continue
        settings = record["settings"]
        combination = {key: settings.get(key) for key in ("target", "skill", "skills", "method", "parameters")}
        key = json.dumps(combination, sort_keys=True)
        groups.setdefault(key, []).append((float(settings.get("scale", 1.0)), name))
        names[key] = (settings["target"], " and ".join(skills))
    comparable: list[Sweep] = []
    for evaluation in evaluations:
        labels = {row["model"]: row["label"] for row in evaluation["rows"]}
        for key, members in groups.items():
            target, skill = names[key]
            points = {scale: labels[name] for scale, name in members if name in labels}
            if len(points) < 2:
                continue
            if target in labels:
                points.setdefault(0.0, labels[target])
            comparable.append(
                {
                    "evaluation": evaluation["stage"],
                    "target": target,
                    "skill": skill,
                    "points": [{"scale": scale, "row": points[scale]} for scale in sorted(points)],
                }
            )
    return comparable


def sweep_view(sweep: Sweep, evaluations: Sequence[Evaluation]) -> dict[str, Any] | None:
    """Return a sweep's charts, one for each metric that at least two of its points have."""
    evaluation = next((one for one in evaluations if one["stage"] == sweep["evaluation"]), None)
    if evaluation is None:
        return None
    rows = {row["label"]: row for row in evaluation["rows"]}
    points = [(point["scale"], rows[point["row"]]) for point in sweep["points"] if point["row"] in rows]
    metrics = metric_order({metric for _, row in points for metric in row["scores"]} | {"retention"})
    charts = [chart for metric in metrics if (chart := _chart(metric, points))]
    view = {"evaluation": sweep["evaluation"], "target": sweep["target"], "skill": sweep["skill"], "charts": charts}
    return view if charts else None


def _chart(metric: str, points: Sequence[tuple[float, EvaluationRow]]) -> dict[str, Any] | None:
    drawn: list[tuple[float, float, float, float]] = []
    for scale, row in points:
        ends = _ends(row["retention"] if metric == "retention" else row["scores"].get(metric))
        if ends is not None:
            drawn.append((scale, *ends))
    if len(drawn) < 2:
        return None
    best = max(drawn, key=lambda point: point[1])
    return {
        "name": metric_name(metric),
        "drawing": band_chart(drawn),
        "best": {"scale": significant(best[0]), "value": score(best[1])},
        "points": [{"scale": significant(scale), "mean": score(mean)} for scale, mean, _, _ in drawn],
    }


def _ends(interval: Interval | None) -> tuple[float, float, float] | None:
    if interval is None:
        return None
    mean, low, high = (finite(interval[end]) for end in ("mean", "low", "high"))  # type: ignore[literal-required]
    return None if mean is None or low is None or high is None else (mean, low, high)
