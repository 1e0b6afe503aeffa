"""The score table in a terminal of 100 columns."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from skillgraft.report import terminal
from tests.report import report_sample as sample


def printed(evaluation: Any, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=False).print(terminal.score_table(evaluation))
    return out.getvalue()


def test_rows_and_intervals_fit_a_hundred_columns() -> None:
    changed = sample.evaluation()
    changed["rows"][2]["label"] = "SFT + a skill with a name that is longer than anyone would like (λ = 1)"
    text = printed(changed)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    assert "0.352 (0.323–0.381)" in text
    assert "0.331 (0.294–0.368)" in text
    assert "0.222" in text
    assert "0.594" in text
    assert "5.1" in text


def test_controls_come_last_after_a_rule() -> None:
    changed = sample.evaluation()
    changed["rows"].reverse()
    lines = printed(changed).splitlines()
    first_control = next(at for at, line in enumerate(lines) if "random vector" in line)
    assert all("vector" not in line and "Base + skill" not in line for line in lines[:first_control])
    assert set(lines[first_control - 1]) & set("├─")


def test_missing_scores_are_dashes() -> None:
    changed: Any = sample.evaluation()
    changed["rows"] = [{**changed["rows"][0], "scores": {}, "retention": None, "answer_words": None}]
    row = next(line for line in printed(changed).splitlines() if "Base" in line)
    assert row.count("–") == 5


def test_labels_are_neither_markup_nor_escape_sequences() -> None:
    changed = sample.evaluation()
    changed["rows"][0]["label"] = "[red]x[/red]\x1b[31m\nnext"
    text = printed(changed, width=140)
    assert "[red]x[/red]⟨U+001B⟩[31m next" in text
    assert "\x1b" not in terminal.headline(changed)
