"""Terminal output: results go to standard output, progress and messages to standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console

from skillgraft.support.escape import escape, escape_line
from skillgraft.support.progress import NO_METRICS, Progress

out_console = Console(width=None if sys.stdout.isatty() else 110)
err_console = Console(stderr=True)


def say(text: str, console: Console = out_console, heading: str = "") -> None:
    """Print text as it is, after a `heading` with markup; untrusted text (a manifest's) cannot steer the terminal."""
    if heading:
        console.print(heading, end="")
    console.print(escape(text, 20_000), soft_wrap=True, highlight=False, markup=False)


def say_remarks(remarks: Iterable[str]) -> None:
    """Print what a plan or report remarks, a line each."""
    for remark in remarks:
        say(remark, heading="[yellow]remark[/] ")


def print_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table of untrusted cells."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in head:
        table.add_column(Text(escape_line(column, 4_000)))
    for row in rows:
        table.add_row(*(Text(escape_line(cell, 4_000)) for cell in row))
    out_console.print(table)


@contextmanager
def progress_bar(what: str, silent: bool, unit: str = "bytes") -> Iterator[Progress | None]:
    """Yield a callback that draws a bar with the rate on a terminal; None where nobody watches."""
    if silent or not err_console.is_terminal:
        yield None
        return
    from rich import progress as bars

    rate = (bars.DownloadColumn(), bars.TransferSpeedColumn()) if unit == "bytes" else ()
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), *rate, bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=err_console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS) -> None:
            if total:
                bar.update(task, completed=done, total=total)

        yield advance
