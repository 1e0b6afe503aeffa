"""The result in sentences that are right for a gain, for a loss and where no difference is shown.

A difference counts as shown where its paired 95% interval excludes zero. The pair that is spoken of is the first row
of role "grafted" and the SFT row that it was compared with: never the best one, which would be picked on its score.
"""

from __future__ import annotations

from typing import NamedTuple

from skillgraft.data.metrics import METRICS
from skillgraft.report.facts import Comparison, Evaluation, EvaluationRow, Interval
from skillgraft.support.escape import escape_tree
from skillgraft.support.formatting import count, finite, score, signed

METRIC_NAMES = {**{name: metric.label for name, metric in METRICS.items()}, "retention": "retention"}

VERDICTS = {"gain": "higher", "loss": "lower", "none": "no difference shown", "unknown": "not compared"}

CONTROL_REMARKS = {  # reading of the strongest control beside the grafted row, by how the two compare
    "gain": "{grafted} is above that on {metrics}, by intervals that exclude zero.",
    "none": "On {metrics}, no difference between that and {grafted} is shown.",
    "unknown": "On {metrics}, {grafted} has the higher mean; the two were not compared in pairs.",
    "not above": "On {metrics}, {grafted} is not above that, so the score is not evidence of a skill.",
}


class Headline(NamedTuple):
    """Headline in parts: the finding, the numbers behind it, and the controls beside it."""

    finding: str
    numbers: str
    controls: str


def metric_name(metric: str) -> str:
    """Return the display name of a metric."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def headline_metrics(evaluation: Evaluation) -> list[str]:
    """Return the first two metrics of an evaluation, which its headlines are about."""
    return metrics_of(evaluation)[:2]


def metrics_of(evaluation: Evaluation) -> list[str]:
    """Return the metrics of an evaluation's rows in the order of a table; those of knowledge where no row has any."""
    return metric_order({name for row in evaluation["rows"] for name in row["scores"]}) or list(METRICS)


def metric_order(metrics: set[str]) -> list[str]:
    """Return metrics in the order of a table: the known ones first, then the others by name."""
    known = [name for name in METRIC_NAMES if name in metrics]
    return known + sorted(metrics - METRIC_NAMES.keys())


def verdict(comparison: Comparison | None) -> str:
    """Return "gain", "loss", "none" (the interval includes zero) or "unknown" (there is no interval)."""
    low, high = (finite(comparison["low"]), finite(comparison["high"])) if comparison else (None, None)
    if low is None or high is None:
        return "unknown"
    return "gain" if low > 0 else "loss" if high < 0 else "none"


def headline(evaluation: Evaluation) -> str:
    """Return the headline of an evaluation: SFT + skill against SFT, with intervals, n and the strongest control."""
    escaped: Evaluation = escape_tree({**evaluation, "examples": []})
    return " ".join(part for part in headline_parts(escaped) if part)


def headline_parts(evaluation: Evaluation) -> Headline:
    """Return the headline in its three parts, each of whole sentences (empty where there is nothing to say)."""
    sft, grafted = compared_pair(evaluation)
    if grafted is None:
        return Headline("No row of this evaluation carries a skill.", _best_row(evaluation), "")
    if sft is None:
        return Headline(
            f"{grafted['label']} has no SFT row to be compared with.",
            _best_row(evaluation),
            _controls(evaluation, grafted),
        )
    metrics = [
        name
        for name in headline_metrics(evaluation)
        if _mean(grafted, name) is not None and _mean(sft, name) is not None
    ]
    if not metrics:
        return Headline(f"{grafted['label']} and {sft['label']} have no score in common.", "", "")
    return Headline(
        _finding(evaluation, grafted, sft, metrics),
        _numbers(evaluation, grafted, sft, metrics),
        _controls(evaluation, grafted),
    )


def compared_pair(evaluation: Evaluation) -> tuple[EvaluationRow | None, EvaluationRow | None]:
    """Return the SFT row and the grafted row that the headline speaks of."""
    rows = evaluation["rows"]
    grafted = next((row for row in rows if row["role"] == "grafted"), None)
    plain = [row for row in rows if row["role"] == "sft"]
    pairs = {(item["row"], item["against"]) for item in evaluation["comparisons"]}
    compared = [row for row in plain if grafted and (grafted["label"], row["label"]) in pairs]
    return next(iter(compared + plain), None), grafted


def find_comparison(evaluation: Evaluation, metric: str, row: str, against: str) -> Comparison | None:
    """Return the paired comparison of two labels on a metric, if there is one, turned round where it must be."""
    for item in evaluation["comparisons"]:
        if (item["metric"], item["row"], item["against"]) == (metric, row, against):
            return item
    for item in evaluation["comparisons"]:
        if (item["metric"], item["row"], item["against"]) == (metric, against, row) and verdict(item) != "unknown":
            turned: Comparison = {**item, "row": row, "against": against, "difference": -item["difference"]}
            return {**turned, "low": -item["high"], "high": -item["low"]}
    return None


def retention_remark(evaluation: Evaluation) -> list[str]:
    """Return sentences on how each adapted row's retention compares with the base row's; empty without both."""
    scored = [(row, row["retention"]) for row in evaluation["rows"] if row["retention"] and row["role"] != "control"]
    reference = next((pair for role in ("base", "sft") for pair in scored if pair[0]["role"] == role), None)
    if reference is None or len(scored) < 2:
        return []
    start, interval = reference
    first = f"On tasks that adapting must not damage, {start['label']} reaches {_with_interval(interval)}"
    return [
        f"{first} (n = {count(interval['n'])}).",
        *(
            _retention_sentence(evaluation, (row, retention), reference)
            for row, retention in scored
            if retention is not None and row is not start
        ),
    ]


def _finding(evaluation: Evaluation, grafted: EvaluationRow, sft: EvaluationRow, metrics: list[str]) -> str:
    metrics_by_kind: dict[str, list[str]] = {}
    for metric in metrics:
        kind = verdict(find_comparison(evaluation, metric, grafted["label"], sft["label"]))
        metrics_by_kind.setdefault(kind, []).append(metric_name(metric))
    this, that = grafted["label"], sft["label"]
    named = {kind: " and ".join(names) for kind, names in metrics_by_kind.items()}
    if "gain" in named and "loss" in named:
        main = f"{this} scores higher than {that} on {named['gain']} but lower on {named['loss']}"
    elif "gain" in named or "loss" in named:
        way = "gain" if "gain" in named else "loss"
        main = f"{this} scores {VERDICTS[way]} than {that} on {named[way]}"
    elif "none" in named:
        main = f"No difference between {this} and {that} is shown on {named.pop('none').replace(' and ', ' or ')}"
    else:
        return f"{this} and {that} were scored, but not compared with a paired interval."
    rest = [f"on {named['none']} no difference is shown"] if "none" in named else []
    rest += [f"{named['unknown']} was not compared with a paired interval"] if "unknown" in named else []
    return "; ".join([main, *rest]) + "."


def _numbers(evaluation: Evaluation, grafted: EvaluationRow, sft: EvaluationRow, metrics: list[str]) -> str:
    parts = []
    for metric in metrics:
        comparison = find_comparison(evaluation, metric, grafted["label"], sft["label"])
        means = f"{metric_name(metric)} {score(_mean(grafted, metric))} against {score(_mean(sft, metric))}"
        kind = verdict(comparison)
        if comparison is None or kind == "unknown":
            parts.append(means)
            continue
        zero = "includes zero" if kind == "none" else "excludes zero"
        interval = f"95% interval {signed(comparison['low'])} to {signed(comparison['high'])}, which {zero}"
        parts.append(f"{means}, a difference of {signed(comparison['difference'])} ({interval})")
    questions, documents = evaluation["questions"], evaluation["documents"]
    scope = f"n = {_plural(questions, 'question')} from {_plural(documents, 'document')}"
    text = f"{'; '.join(parts)}; {scope}."
    rivals = sum(row["role"] == "grafted" for row in evaluation["rows"])
    choice = f" Of {rivals} rows that carry a skill, this is the first." if rivals > 1 else ""
    return text[0].upper() + text[1:] + choice


def _controls(evaluation: Evaluation, grafted: EvaluationRow) -> str:
    controls = [row for row in evaluation["rows"] if row["role"] == "control"]
    strongest = {}
    for metric in headline_metrics(evaluation):
        scored = [(mean, row) for row in controls if (mean := _mean(row, metric)) is not None]
        if scored:
            strongest[metric] = max(scored, key=lambda pair: pair[0])
    if not strongest:
        return "No control was evaluated, so a gain does not yet tell a skill from a formatting habit."
    labels = [row["label"] for _, row in strongest.values()]
    one = len(set(labels)) == 1
    values = " and ".join(
        f"{metric_name(metric)} {score(mean)}" + ("" if one else f" ({row['label']})")
        for metric, (mean, row) in strongest.items()
    )
    start = f"The strongest control, {labels[0]}, reached" if one else "The strongest controls reached"
    metrics_by_kind: dict[str, list[str]] = {}
    for metric, (mean, row) in strongest.items():
        metrics_by_kind.setdefault(_against_control(evaluation, grafted, metric, mean, row), []).append(
            metric_name(metric)
        )
    remarks = [
        CONTROL_REMARKS[kind].format(metrics=" and ".join(names), grafted=grafted["label"])
        for kind, names in metrics_by_kind.items()
        if kind in CONTROL_REMARKS
    ]
    return " ".join([f"{start} {values}.", *remarks])


def _against_control(
    evaluation: Evaluation, grafted: EvaluationRow, metric: str, mean: float, control: EvaluationRow
) -> str:
    own = _mean(grafted, metric)
    if own is None:
        return "not scored"
    if own <= mean:
        return "not above"
    return verdict(find_comparison(evaluation, metric, grafted["label"], control["label"]))


def _best_row(evaluation: Evaluation) -> str:
    for metric in headline_metrics(evaluation):
        scored = [(mean, row["label"]) for row in evaluation["rows"] if (mean := _mean(row, metric)) is not None]
        if scored:
            mean, label = max(scored, key=lambda pair: pair[0])
            questions = _plural(evaluation["questions"], "question")
            return f"The highest {metric_name(metric)} is {score(mean)}, of {label} (n = {questions})."
    return ""


def _retention_sentence(
    evaluation: Evaluation, row: tuple[EvaluationRow, Interval], reference: tuple[EvaluationRow, Interval]
) -> str:
    label, base = row[0]["label"], reference[0]["label"]
    comparison = find_comparison(evaluation, "retention", label, base)
    kind = verdict(comparison)
    if comparison is not None and kind != "unknown":
        change = {"gain": "a gain", "loss": "a loss", "none": "no change shown"}[kind]
        interval = f"{signed(comparison['low'])} to {signed(comparison['high'])}"
        return f"{label}: {score(row[1]['mean'])}, {signed(comparison['difference'])} ({interval}), {change}."
    if row[1]["high"] < reference[1]["low"]:
        remark = f"wholly below the interval of {base}: a loss"
    elif row[1]["low"] > reference[1]["high"]:
        remark = f"wholly above the interval of {base}: a gain"
    else:
        remark = f"which overlaps the interval of {base}: no change shown, though the two were not compared in pairs"
    return f"{label}: {_with_interval(row[1])}, {remark}."


def _mean(row: EvaluationRow, metric: str) -> float | None:
    return finite(row["scores"][metric]["mean"]) if metric in row["scores"] else None


def _with_interval(interval: Interval) -> str:
    return f"{score(interval['mean'])} ({score(interval['low'])} to {score(interval['high'])})"


def _plural(number: int, noun: str) -> str:
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"
