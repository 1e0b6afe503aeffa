"""The score table and the headline of an evaluation for a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from skillgraft.report.facts import Evaluation, EvaluationRow, Interval
from skillgraft.report.wording import headline, metric_name, metrics_of
from skillgraft.support.escape import escape_line, escape_tree
from skillgraft.support.formatting import MISSING, finite, one_decimal, score

__all__ = ["headline", "score_table"]

SHORT = {"exact_match": "EM"}
ROLE_STYLES = {"grafted": "bold", "control": "dim"}


def score_table(evaluation: Evaluation) -> Table:
    """Return the rows of an evaluation with 95% intervals, the controls last; it fits 100 columns."""
    escaped: Evaluation = escape_tree(evaluation)
    scope = f"{escaped['questions']:,} questions from {escaped['documents']:,} documents"
    table = Table(title=Text(f"{escape_line(escaped['stage'], 40)}: {scope}, 95% intervals"), title_justify="left")
    table.add_column("Model", min_width=16, overflow="fold")
    metrics = metrics_of(escaped)
    names = [SHORT.get(name, _capitalized(metric_name(name))) for name in metrics]
    for name in (*names, "Retention", "Words"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = sorted(escaped["rows"], key=lambda row: row["role"] == "control")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        starts_controls = following is not None and following["role"] == "control" != row["role"]
        table.add_row(*_cells(row, metrics), style=ROLE_STYLES.get(row["role"]), end_section=starts_controls)
    return table


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cells(row: EvaluationRow, metrics: Sequence[str]) -> list[Text]:
    scores = row["scores"]
    texts = [
        escape_line(row["label"], 120),
        *(_with_interval(scores.get(name)) for name in metrics[:2]),
        *(_mean(scores.get(name)) for name in metrics[2:]),
        _mean(row["retention"]),
        one_decimal(row["answer_words"]),
    ]
    return [Text(text) for text in texts]


def _mean(interval: Interval | None) -> str:
    return score(interval["mean"]) if interval else MISSING


def _with_interval(interval: Interval | None) -> str:
    if interval is None or finite(interval["low"]) is None or finite(interval["high"]) is None:
        return _mean(interval)
    return f"{_mean(interval)} ({score(interval['low'])}–{score(interval['high'])})"
