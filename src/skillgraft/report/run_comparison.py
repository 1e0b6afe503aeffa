"""Several runs side by side: the same rows in neighbouring columns, what differs between their settings, one page."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import yaml

from skillgraft.report.answers import examples_view
from skillgraft.report.charts import axis
from skillgraft.report.curves import training_view
from skillgraft.report.facts import Evaluation, EvaluationRow, Example, Facts, Interval
from skillgraft.report.heat import HeatMap, geometry_view, on_one_scale
from skillgraft.report.page import environment, frame_view
from skillgraft.report.tables import interval_ends, score_cell
from skillgraft.report.wording import compared_pair, find_comparison, headline_parts, metric_name, metric_order, verdict
from skillgraft.support.escape import escape, escape_tree
from skillgraft.support.formatting import duration, finite, operations, signed

EXAMPLES_BYTES = 900_000
MAP_CELLS = 7_500  # more of them in all are left to the runs' own reports
LEAVES = 2_000  # of a recipe, and how deep
DEPTH = 12


def render_runs(runs: Mapping[str, Facts]) -> str:
    """Return one page of several runs' facts (see `facts.Facts`), by the names that the page calls them."""
    escaped = {escape(name): escape_tree(facts) for name, facts in runs.items()}
    return environment().get_template("runs.html.j2").render(**_view(escaped))


def _view(runs: Mapping[str, Facts]) -> dict[str, Any]:
    evaluations = {name: main for name, facts in runs.items() if (main := main_evaluation(facts)) is not None}
    examples = _examples(evaluations)
    return {
        "title": f"{len(runs)} runs side by side",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "skillgraft_version": version("skillgraft"),
        "recipe_path": "",
        "machine": {},
        "runs": [
            {
                "name": name,
                "title": facts["title"],
                "headline": headline_parts(evaluations[name]) if name in evaluations else None,
            }
            for name, facts in runs.items()
        ],
        "names": list(runs),
        "same_questions": _same_questions(evaluations),
        "scores": [_metric_view(metric, runs, evaluations) for metric in _metrics(evaluations)],
        "costs": _costs(runs, evaluations),
        "where": _where(runs),
        "maps": _maps(runs),
        "training": _training(runs),
        "evaluations": [{"stage": "answers", "examples": examples}] if examples else [],
        "differences": _differences(runs),
        "commands": [{"name": name, "command": facts.get("command", "")} for name, facts in runs.items()],
        **frame_view(),
    }


def main_evaluation(facts: Facts) -> Evaluation | None:
    """Return the first evaluation with a row that carries a skill, else the first with rows."""
    scored = [one for one in facts.get("evaluations", []) if one["rows"]]
    grafted = [one for one in scored if any(row["role"] == "grafted" for row in one["rows"])]
    return next(iter(grafted + scored), None)


def _same_questions(evaluations: Mapping[str, Evaluation]) -> str:
    if len(evaluations) < 2:
        return ""
    question_sets = [
        (one["questions"], {(item["document"], item["question"]) for item in one["examples"]})
        for one in evaluations.values()
    ]
    if all(one == question_sets[0] for one in question_sets):
        return "All runs asked the same questions, as far as their examples show."
    counts = "; ".join(f"{name}: {one['questions']:,}" for name, one in evaluations.items())
    return f"The runs did not ask the same questions ({counts}): rows of one name differ in more than the model."


def _metrics(evaluations: Mapping[str, Evaluation]) -> list[str]:
    rows = [row for one in evaluations.values() for row in one["rows"]]
    retained = {"retention"} if any(row["retention"] for row in rows) else set()
    return metric_order({metric for row in rows for metric in row["scores"]} | retained)


def _metric_view(metric: str, runs: Mapping[str, Facts], evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Return one metric's rows, a cell for each run, on one axis; and what SFT + skill gained in each run."""
    rows_by_run = {name: {row["label"]: row for row in one["rows"]} for name, one in evaluations.items()}
    labels = list(dict.fromkeys(label for rows in rows_by_run.values() for label in rows))
    cells = {label: [_interval(metric, rows_by_run.get(name, {}).get(label)) for name in runs] for label in labels}
    on = axis(interval_ends([one for row in cells.values() for one in row]))
    grafted = {row["label"] for rows in rows_by_run.values() for row in rows.values() if row["role"] == "grafted"}
    return {
        "name": metric_name(metric),
        "low": on.labels[0],
        "high": on.labels[-1],
        "rows": [
            {"label": label, "grafted": label in grafted, "cells": [score_cell(on, one, None) for one in row]}
            for label, row in cells.items()
            if any(row)
        ],
        "gains": [_gain(metric, evaluations.get(name)) for name in runs],
    }


def _interval(metric: str, row: EvaluationRow | None) -> Interval | None:
    if row is None:
        return None
    return row["retention"] if metric == "retention" else row["scores"].get(metric)


def _gain(metric: str, evaluation: Evaluation | None) -> dict[str, str] | None:
    sft, grafted = compared_pair(evaluation) if evaluation else (None, None)
    if evaluation is None or sft is None or grafted is None:
        return None
    comparison = find_comparison(evaluation, metric, grafted["label"], sft["label"])
    if comparison is None or (kind := verdict(comparison)) == "unknown":
        return None
    interval = f"{signed(comparison['low'])} to {signed(comparison['high'])}"
    return {"difference": signed(comparison["difference"]), "interval": interval, "kind": kind}


def _costs(runs: Mapping[str, Facts], evaluations: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """Return the total cost of each run, and the training cost of its row with the skill."""

    def grafted(name: str) -> Mapping[str, Any]:
        row = compared_pair(evaluations[name])[1] if name in evaluations else None
        return (row["cost"] or {}) if row else {}

    def all_stages(facts: Facts) -> float:
        return sum(finite(stage["seconds"]) or 0.0 for stage in facts.get("stages", []))

    rows = {
        "All stages": [duration(all_stages(facts)) for facts in runs.values()],
        "Training that led to SFT + skill": [duration(grafted(name).get("train_seconds") or None) for name in runs],
        "Operations of that training": [operations(grafted(name).get("train_flops")) for name in runs],
        "Device": [facts.get("machine", {}).get("device", "–") for facts in runs.values()],  # type: ignore[call-overload]
    }
    return [{"name": name, "cells": cells} for name, cells in rows.items()]


def _where(runs: Mapping[str, Facts]) -> list[dict[str, Any]]:
    views = []
    for name, facts in runs.items():
        view = geometry_view(facts.get("geometry"))
        if view is not None:
            views.append({"name": name, **view})
    return views


def _maps(runs: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Return the runs' heat maps by measure, one vector's together on one scale; none if they are too many."""
    measures: dict[str, dict[str, list[tuple[str, HeatMap]]]] = {}
    for run in _where(runs):
        for measure in run["maps"]:
            for figure in measure["figures"]:
                members = measures.setdefault(measure["title"], {}).setdefault(figure.title, [])
                members.append((run["name"], figure))
    maps: list[dict[str, Any]] = []
    for title, vectors in measures.items():
        figures: list[HeatMap] = []
        for members in vectors.values():
            scaled = on_one_scale([figure for _, figure in members])
            figures += [
                replace(figure, title=f"{name}: {figure.title}")
                for (name, _), figure in zip(members, scaled, strict=True)
            ]
        maps.append({"title": title, "figures": figures})
    cells = sum(len(figure.cells) for measure in maps for figure in measure["figures"])
    return maps if cells <= MAP_CELLS else []


def _training(runs: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Return the runs' training stages, those of one name together."""
    stages = dict.fromkeys(item["stage"] for facts in runs.values() for item in facts.get("training", []))
    return [
        {**training_view(item), "stage": f"{name}: {stage}"}
        for stage in stages
        for name, facts in runs.items()
        for item in facts.get("training", [])
        if item["stage"] == stage
    ]


def _examples(evaluations: Mapping[str, Evaluation]) -> dict[str, Any] | None:
    """Return the questions that all runs show, with the answers of each run's SFT + skill (else of its first row)."""
    if len(evaluations) < 2:
        return None
    labels = {name: (compared_pair(one)[1] or one["rows"][0])["label"] for name, one in evaluations.items()}
    titles = {name: f"{name}: {label}" for name, label in labels.items()}
    by_question = {
        name: {(item["document"], item["question"]): item for item in one["examples"]}
        for name, one in evaluations.items()
    }
    first, *others = by_question
    merged: list[Example] = []
    for question, item in by_question[first].items():
        if any(question not in by_question[name] for name in others):
            continue
        answers = [
            {**answer, "model": titles[name]}
            for name in by_question
            for answer in by_question[name][question]["answers"]
            if answer["model"] == labels[name]
        ]
        merged.append({**item, "answers": answers})  # type: ignore[typeddict-item]
    rows = [{**one["rows"][0], "label": titles[name], "role": "other"} for name, one in evaluations.items()]
    together: Evaluation = {**evaluations[first], "rows": rows, "examples": merged}  # type: ignore[typeddict-item]
    return examples_view(together, EXAMPLES_BYTES, (titles[first], titles[others[-1]])) if merged else None


def _differences(runs: Mapping[str, Facts]) -> list[dict[str, Any]]:
    """Return the differences between the resolved recipes, versions and machines, setting by setting."""
    settings = [
        {
            **_flat(facts.get("recipe_yaml", "")),
            **{f"version of {name}": text for name, text in facts.get("versions", {}).items()},
            **{f"machine: {name}": str(value) for name, value in facts.get("machine", {}).items()},
        }
        for facts in runs.values()
    ]
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [{"name": name, "cells": [one.get(name, "–") for one in settings]} for name in names]
    return [row for row in rows if len(set(row["cells"])) > 1]


def _flat(text: str) -> dict[str, str]:
    try:
        return dict(itertools.islice(_leaves(yaml.safe_load(text), ""), LEAVES))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return {}


def _leaves(value: Any, name: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth < DEPTH and isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}" if name else str(key), depth + 1)
    elif depth < DEPTH and isinstance(value, Sequence) and not isinstance(value, str):
        for place, item in enumerate(value):
            yield from _leaves(item, f"{name}[{place}]", depth + 1)
    elif not isinstance(value, Mapping | list):
        yield name, escape(str(value))
