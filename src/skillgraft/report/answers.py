"""Examples as the templates need them: the compared pair side by side, the other rows' answers below."""

from __future__ import annotations

from typing import Any

from markupsafe import escape

from skillgraft.report.facts import Answer, Evaluation, Example
from skillgraft.report.wording import compared_pair, metric_name
from skillgraft.support.formatting import finite, score

GOLD_ANSWERS = 6
UNSCROLLED_CHARACTERS, UNSCROLLED_LINES = 200, 6  # more may scroll on a phone and is then reached by keyboard
CHANGES = ("gained", "lost", "unchanged")
MARKS = {"exact_match": "exact", "containment": "contains the answer"}
SOLVED = dict.fromkeys(MARKS).keys()
"""Metrics of 1 or 0 that say whether an answer is right, the strictest first."""
MARKUP_BYTES = 500  # of the template around each answer, roughly


def examples_view(evaluation: Evaluation, most_bytes: int, pair: tuple[str, str] | None = None) -> dict[str, Any]:
    """Return an evaluation's examples as far as they fit `most_bytes` of HTML, with a count of each change.

    `pair` holds the labels between which a change is looked for; without it, they are those of the headline.
    """
    sft, grafted = compared_pair(evaluation)
    pair = pair or ((sft["label"], grafted["label"]) if sft and grafted else None)
    roles = {row["label"]: row["role"] for row in evaluation["rows"]}
    views: list[dict[str, Any]] = []
    spent = 0
    for example in evaluation["examples"]:
        spent += _html_bytes(example)
        if spent > most_bytes:
            break
        views.append(_example_view(example, pair, roles))
    counts = {change: sum(item["change"] == change for item in views) for change in CHANGES}
    return {"pair": pair, "shown": views, "total": len(evaluation["examples"]), "counts": counts}


def _example_view(example: Example, pair: tuple[str, str] | None, roles: dict[str, str]) -> dict[str, Any]:
    by_label = {answer["model"]: answer for answer in example["answers"]}
    both = [by_label[label] for label in pair if label in by_label] if pair else []
    compared = both if len(both) == 2 else []
    others = [answer for answer in example["answers"] if not any(answer is one for one in compared)]
    gold = example["gold"]
    return {
        "title": example["title"],
        "document": example["document"],
        "question": example["question"],
        "gold": gold[:GOLD_ANSWERS],
        "more_gold": max(0, len(gold) - GOLD_ANSWERS),
        "change": _change(*compared) if len(compared) == 2 else "",
        "compared": [_answer_view(answer, roles) for answer in compared],
        "others": [_answer_view(answer, roles) for answer in others],
    }


def scores_of(answer: Answer) -> dict[str, float]:
    """Return an example answer's scores by metric."""
    return {name: value for name, value in answer.items() if name not in ("model", "text")}  # type: ignore[misc]


def _answer_view(answer: Answer, roles: dict[str, str]) -> dict[str, Any]:
    scores = scores_of(answer)
    marks = [MARKS.get(name, metric_name(name)) for name in SOLVED if (finite(scores.get(name)) or 0) >= 1]
    if not SOLVED & scores.keys():
        marks = [metric_name(name) for name, value in scores.items() if (finite(value) or 0) >= 1]
    main = next((name for name in scores if name not in SOLVED), next(iter(scores)))
    text = answer["text"].strip()
    return {
        "label": answer["model"],
        "role": roles.get(answer["model"], "other"),
        "text": text,
        "scrolls": len(text) > UNSCROLLED_CHARACTERS or text.count("\n") > UNSCROLLED_LINES,
        "correct": bool(marks),
        "mark": marks[0] if marks else "not contained" if "containment" in scores else "not solved",
        "metric": metric_name(main),
        "score": score(scores[main]),
    }


def _change(before: Answer, after: Answer) -> str:
    metric = "containment" if "containment" in after else next(iter(scores_of(after)))
    difference = (finite(scores_of(after)[metric]) or 0) - (finite(scores_of(before).get(metric)) or 0)
    return "gained" if difference > 0 else "lost" if difference < 0 else "unchanged"


def _html_bytes(example: Example) -> int:
    texts = [example["title"], example["document"], example["question"], *example["gold"][:GOLD_ANSWERS]]
    texts += [text for answer in example["answers"] for text in (answer["model"], answer["text"])]
    escaped = sum(len(str(escape(text)).encode()) for text in texts)
    return escaped + MARKUP_BYTES * (1 + len(example["answers"]))
