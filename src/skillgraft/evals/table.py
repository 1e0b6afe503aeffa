"""From raw answers to the table that is reported: rows with intervals, paired differences, examples. Loads no torch."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from skillgraft.data.documents import Document
from skillgraft.data.tasks import Task
from skillgraft.data.words import count_words
from skillgraft.evals.evaluation import Answer, Comparison, Evaluation, EvaluationRow, Example, Retained
from skillgraft.evals.intervals import Interval, bootstrap, bootstrap_of_strata

RIVALS = ("control", "base", "open_book", "few_shot")
"""Roles of the rows that a grafted one is compared with."""


def build_row(
    raw: Mapping[str, Any],
    tasks: Sequence[Task],
    about: Mapping[str, Any],
    before: Mapping[str, Any] | None = None,
) -> EvaluationRow:
    """Return one row: `about` (model, label, role, note, cost) and each metric's mean and interval over documents.

    Its `retention` is the mean over tasks, each counting alike; `retained` has every task and held-out text by itself,
    with the paired change from the raw result `before`. `found` says how well retrieval did, where there was any.
    """
    clusters = [task.cluster for task in tasks]
    row: dict[str, Any] = {
        **about,
        "scores": {name: bootstrap(raw["scores"][name], clusters) for name in raw["scores"]},
        "retention": bootstrap_of_strata(_strata(raw, raw["retention"])) if raw["retention"] else None,
        "retained": retained(raw, None if before is raw else before),
        "answer_words": sum(count_words(text) for text in raw["answers"]) / len(tasks),
        "seconds": raw["seconds"],
        "cost": {**about.get("cost", {}), "eval_flops": raw["flops"]},
    }
    if "prompt_tokens" in raw:
        row["prompt_tokens"] = raw["prompt_tokens"]
    if "found" in raw:
        row["found"] = {name: bootstrap(values, clusters) for name, values in raw["found"].items()}
    return cast(EvaluationRow, row)


def _strata(raw: Mapping[str, Any], values: Sequence[float]) -> list[list[float]]:
    """Return `values`, one an item of retention, by task; all in one where no task is named."""
    sizes = [len(next(iter(by_metric.values()))) for by_metric in raw.get("tasks", {}).values()] or [len(values)]
    ends = list(itertools.accumulate(sizes))
    return [list(values[end - size : end]) for size, end in zip(sizes, ends, strict=True)]


def retained(raw: Mapping[str, Any], before: Mapping[str, Any] | None) -> list[Retained]:
    """Return each measure of a raw result's retention: task, metric, score, its paired change from `before` or None."""
    measures: list[Retained] = []
    theirs = (before or {}).get("tasks", {})
    for task, by_metric in raw.get("tasks", {}).items():
        items = [str(i) for i in range(len(next(iter(by_metric.values()))))]
        for metric, values in by_metric.items():
            other = theirs.get(task, {}).get(metric)
            change = bootstrap([a - b for a, b in zip(values, other, strict=True)], items) if other else None
            measures.append(_measure(task, metric, bootstrap(values, items), change))
    return measures + _retained_text(raw.get("text"), (before or {}).get("text"))


def _retained_text(text: Mapping[str, Any] | None, before: Mapping[str, Any] | None) -> list[Retained]:
    """Return bits per byte and token perplexity; documents are redrawn, or blocks where the text is but one.

    Changes are paired by block, so there are none where another tokenizer cut the text otherwise; that of perplexity is
    the ratio minus 1.
    """
    if text is None:
        return []
    clusters = text["documents"]
    if len(set(clusters)) == 1:
        clusters = [str(i) for i in range(len(clusters))]
    pairs = None
    if before is not None and (before["tokens"], before["bytes"]) == (text["tokens"], text["bytes"]):
        pairs = [mine - theirs for mine, theirs in zip(text["nats"], before["nats"], strict=True)]
    by_byte = [nats / math.log(2) for nats in text["nats"]]
    bits = bootstrap(by_byte, clusters, weights=text["bytes"])
    perplexity = _each(math.exp, bootstrap(text["nats"], clusters, weights=text["tokens"]))
    bits_change = perplexity_change = None
    if pairs:
        bits_change = bootstrap([nats / math.log(2) for nats in pairs], clusters, weights=text["bytes"])
        perplexity_change = _each(math.expm1, bootstrap(pairs, clusters, weights=text["tokens"]))
    return [
        _measure("held-out text", "bits per byte", bits, bits_change, less_is_better=True),
        _measure("held-out text", "token perplexity", perplexity, perplexity_change, less_is_better=True),
    ]


def _measure(
    task: str, metric: str, interval: Interval, change: Interval | None, less_is_better: bool = False
) -> Retained:
    return {"task": task, "metric": metric, "score": interval, "change": change, "less_is_better": less_is_better}


def _each(function: Callable[[float], float], interval: Interval) -> Interval:
    """Return the interval with a rising function applied to its mean and ends."""
    mean, low, high = (function(interval[end]) for end in ("mean", "low", "high"))  # type: ignore[literal-required]
    return {"mean": mean, "low": low, "high": high, "n": interval["n"]}


def differences(
    raws: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    tasks: Sequence[Task],
) -> list[Comparison]:
    """Return, for each pair (model, against) and metric, the paired difference with its 95% interval.

    Answers are redrawn by document, retention items one by one within their task.
    """
    clusters = [task.cluster for task in tasks]
    comparisons: list[Comparison] = []
    for model, against in pairs:
        mine, theirs = raws[model], raws[against]
        compared = {metric: (mine["scores"][metric], theirs["scores"][metric]) for metric in mine["scores"]}
        intervals = {
            metric: bootstrap([a - b for a, b in zip(first, second, strict=True)], clusters)
            for metric, (first, second) in compared.items()
        }
        if mine["retention"] and theirs["retention"]:
            change = [a - b for a, b in zip(mine["retention"], theirs["retention"], strict=True)]
            intervals["retention"] = bootstrap_of_strata(_strata(mine, change))
        for metric, interval in intervals.items():
            comparisons.append(
                {
                    "metric": metric,
                    "row": labels[model],
                    "against": labels[against],
                    "difference": interval["mean"],
                    "low": interval["low"],
                    "high": interval["high"],
                }
            )
    return comparisons


def pairs_to_compare(roles: Mapping[str, str], baseline: str | None = None) -> list[tuple[str, str]]:
    """Return what a reader wants compared: each model against the SFT row, each grafted one against each control,
    the base and the rows with more in the prompt.

    Without an SFT row the first model stands in for it; `baseline` names another.
    """
    sft = baseline or _sft(roles)
    pairs = [(model, sft) for model in roles if model != sft]
    grafted = [model for model, role in roles.items() if role == "grafted"]
    rivals = [model for model, role in roles.items() if role in RIVALS and model != sft]
    return pairs + [(model, rival) for model in grafted for rival in rivals]


def before_adapting(roles: Mapping[str, str], baseline: str | None = None) -> str:
    """Return the row that retention is compared with: the base, else `baseline`, else the SFT row or the first."""
    return next((model for model, role in roles.items() if role == "base"), None) or baseline or _sft(roles)


def _sft(roles: Mapping[str, str]) -> str:
    return next((model for model, role in roles.items() if role == "sft"), next(iter(roles)))


def examples(
    raws: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str],
    tasks: Sequence[Task],
    documents: Mapping[str, Document],
    most: int = 200,
) -> list[Example]:
    """Return up to `most` tasks, evenly spaced over all, with every model's answer and its scores side by side."""
    step = max(1, -(-len(tasks) // most))
    return [
        {
            "document": task.cluster,
            "title": documents[task.cluster].title if task.cluster in documents else task.cluster,
            "question": task.prompt,
            "gold": list(task.answers),
            "answers": [
                cast(
                    Answer,
                    {
                        "model": labels[model],
                        "text": raw["answers"][i],
                        **{m: values[i] for m, values in raw["scores"].items()},
                    },
                )
                for model, raw in raws.items()
            ],
        }
        for i, task in list(enumerate(tasks))[::step]
    ]


def write_table(out: Path, evaluation: Evaluation, raws: Mapping[str, Any]) -> None:
    """Write a table and the answers that it is made of into the new directory `out`."""
    out.mkdir()
    (out / "evaluation.json").write_text(json.dumps(evaluation, indent=1, ensure_ascii=False))
    (out / "answers.json").write_text(json.dumps(raws, indent=1, ensure_ascii=False))
