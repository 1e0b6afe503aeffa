"""Answers on a terminal: side by side where there is room, one under the other elsewhere; hostile text made visible."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from skillgraft.chat.plan import ChatAnswer
from skillgraft.support.escape import escape, escape_line

COLUMN = 30
"""The narrowest column in which an answer is still read with ease."""
LONGEST = 100_000


def heading(answer: ChatAnswer) -> str:
    """Return `sft + skill, λ = 0.5`, harmless to print."""
    name = escape_line(answer.model, 200)
    return name if answer.scale is None else f"{name}, λ = {answer.scale:g}"


def pace(answer: ChatAnswer) -> str:
    """Return `12 tokens, 0.8 s`, and whether the answer was cut."""
    cut = ", cut: /tokens" if answer.cut else ""
    return f"{answer.tokens} tokens, {answer.seconds:.1f} s{cut}"


def side_by_side(answers: Sequence[ChatAnswer], width: int) -> RenderableType:
    """Return the answers in columns, or stacked where a column would have fewer than `COLUMN` characters."""
    if len(answers) * (COLUMN + 3) > width:
        return Group(*(each for answer in answers for each in _stacked(answer)))
    table = Table(expand=True, show_lines=False)
    for answer in answers:
        table.add_column(Text(heading(answer)), ratio=1, overflow="fold")
    table.add_row(*map(_text, answers))
    table.add_row(*(Text(pace(answer), "dim") for answer in answers))
    return table


def plain(prompt: str, answers: Sequence[ChatAnswer]) -> str:
    """Return prompt and answers as lines for a file or a pipe."""
    lines = [f"> {escape_line(prompt, LONGEST)}"]
    lines += [f"{heading(answer)}: {escape(answer.text, LONGEST)}" for answer in answers]
    return "\n".join(lines) + "\n"


def _stacked(answer: ChatAnswer) -> list[RenderableType]:
    return [
        Rule(Text(heading(answer)), align="left"),
        _text(answer),
        Text(pace(answer), "dim"),
    ]


def _text(answer: ChatAnswer) -> Text:
    return Text(escape(answer.text, LONGEST)) if answer.text else Text("(nothing)", "dim")
