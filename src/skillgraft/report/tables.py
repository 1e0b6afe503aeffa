"""The score table and the table of paired differences as the templates need them: text and coordinates."""

from __future__ import annotations

from typing import Any

from skillgraft.report.charts import Axis, axis, dot
from skillgraft.report.facts import Comparison, Evaluation, EvaluationRow, Interval, Retained
from skillgraft.report.wording import VERDICTS, compared_pair, metric_name, metric_order, verdict
from skillgraft.support.formatting import count, duration, finite, one_decimal, operations, score, signed

GROUPS = {
    "Models": ("base", "sft", "grafted", "other"),
    "More in the prompt (open book, few-shot)": ("open_book", "few_shot"),
    "Controls": ("control",),
}


def score_table_view(evaluation: Evaluation) -> dict[str, Any]:
    """Return the columns and the grouped rows of a score table; each column's drawings share one axis."""
    rows = evaluation["rows"]
    metrics = metric_order({metric for row in rows for metric in row["scores"]})
    columns = [(metric_name(metric), [row["scores"].get(metric) for row in rows]) for metric in metrics]
    if any(row["retention"] for row in rows):
        columns.append(("retention", [row["retention"] for row in rows]))
    axes = [axis(interval_ends(intervals)) for _, intervals in columns]
    sft, _ = compared_pair(evaluation)
    anchor = rows.index(sft) if sft else None
    row_views = [
        {
            **_row_view(row),
            "cells": [
                score_cell(on, intervals[at], None if anchor is None else intervals[anchor])
                for on, (_, intervals) in zip(axes, columns, strict=True)
            ],
        }
        for at, row in enumerate(rows)
    ]
    in_group = {name: [row for row in row_views if (row["role"] in roles)] for name, roles in GROUPS.items()}
    known = {role for roles in GROUPS.values() for role in roles}
    in_group["Models"] += [row for row in row_views if row["role"] not in known]
    return {
        "columns": [
            {"name": name, "low": on.labels[0], "high": on.labels[-1]}
            for on, (name, _) in zip(axes, columns, strict=True)
        ],
        "groups": [{"name": name, "rows": group} for name, group in in_group.items() if group],
        "reference": sft["label"] if sft else "",
    }


def difference_groups(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the paired differences by metric, all drawn on one axis that has zero."""
    comparisons = evaluation["comparisons"]
    ends = [finite(item[end]) for item in comparisons for end in ("difference", "low", "high")]  # type: ignore[literal-required]
    on = axis([value for value in ends if value is not None], with_zero=True)
    return [
        {
            "name": metric_name(metric),
            "low": on.labels[0],
            "high": on.labels[-1],
            "items": [_difference(on, item) for item in comparisons if item["metric"] == metric],
        }
        for metric in metric_order({item["metric"] for item in comparisons})
    ]


def _row_view(row: EvaluationRow) -> dict[str, Any]:
    cost = row["cost"] or {}
    seconds = cost.get("eval_seconds")
    return {
        "label": row["label"],
        "model": row["model"],
        "role": row["role"],
        "note": _note(row),
        "words": one_decimal(row["answer_words"]),
        "train_seconds": duration(cost.get("train_seconds") or None),
        "train_flops": operations(cost.get("train_flops")),
        "eval_seconds": duration(row["seconds"] if seconds is None else seconds),
        "eval_flops": operations(cost.get("eval_flops")),
    }


def _note(row: EvaluationRow) -> str:
    """Return a row's note, with the quality of retrieval and the length of its prompts."""
    retrieval = row.get("found", {})
    parts = [row["note"]]
    if "recall" in retrieval:
        parts.append(f"the document is among them for {_share(retrieval['recall'])}")
    if "answer_in_context" in retrieval:
        parts.append(f"a gold answer is in them for {_share(retrieval['answer_in_context'])} of the questions")
    if "prompt_tokens" in row and row["role"] in ("open_book", "few_shot"):
        parts.append(f"{count(round(row['prompt_tokens']))} prompt tokens on average")
    return "; ".join(part for part in parts if part)


def _share(interval: Interval) -> str:
    return f"{score(interval['mean'])} ({score(interval['low'])}–{score(interval['high'])})"


def retained_view(evaluation: Evaluation) -> dict[str, Any] | None:
    """Return the table of retention by task: a column a measure, score and change by row; None for one measure."""
    rows = [row for row in evaluation["rows"] if row.get("retained")]
    sizes = {(each["task"], each["metric"]): each["score"]["n"] for row in rows for each in row["retained"]}
    if len(sizes) < 2:
        return None
    row_views = []
    for row in rows:
        by_name = {(each["task"], each["metric"]): each for each in row["retained"]}
        cells = [_retained_cell(by_name[name]) if name in by_name else None for name in sizes]
        row_views.append({"label": row["label"], "role": row["role"], "cells": cells})
    columns = [{"name": f"{task}, {metric}", "n": count(n)} for (task, metric), n in sizes.items()]
    return {"columns": columns, "rows": row_views, "against": evaluation.get("retention_against", "")}


def _retained_cell(each: Retained) -> dict[str, Any]:
    """Return a measure's score and change as text; `kind` is whether the change is for the better."""
    change = each["change"]
    kind = "unknown"
    if change is not None:
        kind = "gain" if change["low"] > 0 else "loss" if change["high"] < 0 else "none"
    if each["less_is_better"]:
        kind = {"gain": "loss", "loss": "gain"}.get(kind, kind)
    return {
        "score": _share(each["score"]),
        "change": f"{signed(change['mean'])} ({signed(change['low'])} to {signed(change['high'])})" if change else "",
        "kind": kind,
    }


def score_cell(on: Axis, interval: Interval | None, reference: Interval | None) -> dict[str, Any] | None:
    """Return a score with its interval as text and drawing; the dashed line stands at the mean of `reference`."""
    if interval is None:
        return None
    low, high = score(interval["low"]), score(interval["high"])
    return {
        "mean": score(interval["mean"]),
        "interval": f"{low}–{high}" if finite(interval["low"]) is not None else "",
        "n": count(interval["n"]),
        "dot": dot(on, interval["mean"], interval["low"], interval["high"], reference["mean"] if reference else None),
    }


def _difference(on: Axis, item: Comparison) -> dict[str, Any]:
    kind = verdict(item)
    retained = item.get("kept")
    return {
        "row": item["row"],
        "against": item["against"],
        "difference": signed(item["difference"]),
        "interval": f"{signed(item['low'])} to {signed(item['high'])}" if kind != "unknown" else "–",
        "kind": kind,
        "verdict": VERDICTS[kind],
        "kept": None if retained is None else "kept" if retained else "not kept",
        "dot": dot(on, item["difference"], item["low"], item["high"], 0.0),
    }


def interval_ends(intervals: list[Interval | None]) -> list[float]:
    """Return the finite means and ends, for an axis that covers them."""
    values = [finite(interval[end]) for interval in intervals if interval for end in ("mean", "low", "high")]  # type: ignore[literal-required]
    return [value for value in values if value is not None]
