"""From raw answers to the table that is reported: rows with intervals, paired differences, examples. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from skillgraft.domains.knowledge import Document, Question
from skillgraft.evals.intervals import bootstrap
from skillgraft.evals.metrics import METRICS


def build_row(raw: Mapping[str, Any], questions: Sequence[Question], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row: `about` (model, label, role, note, cost) and each metric's mean and interval over documents."""
    clusters = [question.document for question in questions]
    retention = raw["retention"]
    return {
        **about,
        "scores": {name: bootstrap(raw["scores"][name], clusters) for name in METRICS},
        "retention": bootstrap(retention, [str(i) for i in range(len(retention))]) if retention else None,
        "answer_words": sum(len(text.split()) for text in raw["answers"]) / len(questions),
        "seconds": raw["seconds"],
    }


def differences(
    raws: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str],
    pairs: Sequence[tuple[str, str]],
    questions: Sequence[Question],
) -> list[dict[str, Any]]:
    """Return, for each pair (model, against) and metric, the paired difference with its 95% interval.

    Answers are redrawn by document, retention items one by one.
    """
    clusters = [question.document for question in questions]
    found = []
    for model, against in pairs:
        mine, theirs = raws[model], raws[against]
        compared = {metric: (mine["scores"][metric], theirs["scores"][metric], clusters) for metric in METRICS}
        if mine["retention"] and theirs["retention"]:
            items = [str(i) for i in range(len(mine["retention"]))]
            compared["retention"] = (mine["retention"], theirs["retention"], items)
        for metric, (first, second, groups) in compared.items():
            interval = bootstrap([a - b for a, b in zip(first, second, strict=True)], groups)
            found.append(
                {
                    "metric": metric,
                    "row": labels[model],
                    "against": labels[against],
                    "difference": interval["mean"],
                    "low": interval["low"],
                    "high": interval["high"],
                }
            )
    return found


def pairs_to_compare(roles: Mapping[str, str], baseline: str | None = None) -> list[tuple[str, str]]:
    """Return what a reader wants compared: each model against the SFT row, each grafted one against each control.

    Without an SFT row the first model stands in for it; `baseline` names another.
    """
    sft = baseline or next((model for model, role in roles.items() if role == "sft"), next(iter(roles)))
    pairs = [(model, sft) for model in roles if model != sft]
    grafted = [model for model, role in roles.items() if role == "grafted"]
    controls = [model for model, role in roles.items() if role in {"control", "base"} and model != sft]
    return pairs + [(model, control) for model in grafted for control in controls]


def examples(
    raws: Mapping[str, Mapping[str, Any]],
    labels: Mapping[str, str],
    questions: Sequence[Question],
    documents: Mapping[str, Document],
    most: int = 200,
) -> list[dict[str, Any]]:
    """Return up to `most` questions, evenly spaced over all, with every model's answer and its scores side by side."""
    step = max(1, -(-len(questions) // most))
    return [
        {
            "document": question.document,
            "title": documents[question.document].title if question.document in documents else question.document,
            "question": question.question,
            "gold": list(question.answers),
            "answers": [
                {"model": labels[model], "text": raw["answers"][i], **{m: raw["scores"][m][i] for m in METRICS}}
                for model, raw in raws.items()
            ],
        }
        for i, question in list(enumerate(questions))[::step]
    ]
