"""Share of a gain that the controls explain: how far each control moves the scores that the skill moved."""

from __future__ import annotations

from typing import Any, NamedTuple

from skillgraft.report.facts import Evaluation, EvaluationRow
from skillgraft.report.wording import compared_pair, find_comparison, headline_metrics, metric_name, verdict
from skillgraft.support.formatting import finite, percent, signed


def gain_view(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the gain of SFT + skill over SFT and each control's change over what it was put on.

    A control is compared with the row that it was put on, with SFT where that is not known. The share is the control's
    change in parts of the gain, given only for a gain whose interval excludes zero, and 0% for a loss.
    None where no pair or no control is.
    """
    sft, grafted = compared_pair(evaluation)
    controls = [row for row in evaluation["rows"] if row["role"] == "control"]
    if sft is None or grafted is None or not controls:
        return None
    by_label = {row["label"]: row for row in evaluation["rows"]}
    metrics = [name for name in headline_metrics(evaluation) if name in grafted["scores"] and name in sft["scores"]]
    gains = {metric: _change(evaluation, metric, grafted, sft) for metric in metrics}
    rows = []
    for control in controls:
        start = by_label.get(control.get("on", ""), sft)
        changes = {metric: _change(evaluation, metric, control, start) for metric in metrics}
        rows.append(
            {
                "label": control["label"],
                "start": start["label"],
                "cells": [_cell(changes[metric], gains[metric]) for metric in metrics],
            }
        )
    return {
        "grafted": grafted["label"],
        "sft": sft["label"],
        "metrics": [metric_name(metric) for metric in metrics],
        "gain": [_cell(gains[metric], None) for metric in metrics],
        "rows": rows,
        "sentences": [_sentence(metric, gains[metric], rows, place) for place, metric in enumerate(metrics)],
    }


class Change(NamedTuple):
    """A difference of two rows (None if unknown), with the interval of the pairs if they were compared."""

    difference: float | None
    interval: tuple[float, float] | None = None


def _change(evaluation: Evaluation, metric: str, row: EvaluationRow, start: EvaluationRow) -> Change:
    """Return the difference of two rows with its paired interval, of the means alone where they were not compared."""
    comparison = find_comparison(evaluation, metric, row["label"], start["label"])
    if comparison is not None and verdict(comparison) != "unknown":
        return Change(comparison["difference"], (comparison["low"], comparison["high"]))
    means = [finite(one["scores"][metric]["mean"]) if metric in one["scores"] else None for one in (row, start)]
    return Change(None if means[0] is None or means[1] is None else means[0] - means[1])


def _cell(change: Change, gain: Change | None) -> dict[str, Any]:
    interval = change.interval
    share = None
    if gain is not None and gain.difference and gain.interval and gain.interval[0] > 0:
        share = None if change.difference is None else max(0.0, change.difference) / gain.difference
    return {
        "difference": signed(change.difference),
        "interval": f"{signed(interval[0])} to {signed(interval[1])}" if interval else "not compared in pairs",
        "share": share,
        "percent": "" if share is None else percent(share),
    }


def _sentence(metric: str, gain: Change, rows: list[dict[str, Any]], place: int) -> str:
    name = metric_name(metric)
    shares = [(row["cells"][place]["share"], row) for row in rows if row["cells"][place]["share"] is not None]
    if not shares:
        return f"On {name} no gain is shown, so there is nothing for the controls to explain."
    start = f"Of the gain of {signed(gain.difference)} on {name} the controls explain"
    most, row = max(shares, key=lambda pair: pair[0])
    start = f"Of the gain of {signed(gain.difference)} on {name} the controls explain"
    if most == 0:
        return f"{start} nothing: none of them gains."
    change = row["cells"][place]["difference"]
    return f"{start} at most {percent(most)}: {row['label']} gains {change} over {row['start']}."
