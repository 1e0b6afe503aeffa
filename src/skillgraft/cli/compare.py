"""The verb `compare` on the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from skillgraft.cli.console import out_console, progress_bar, say, say_remarks
from skillgraft.cli.options import AllowOption, JsonOption, ThreadsOption
from skillgraft.errors import OutputExistsError


def compare(
    operands: Annotated[
        list[str],
        typer.Argument(
            metavar="VECTOR",
            help="DIR, NAME=DIR or GROUP/NAME=DIR of a checkpoint, skill (or its name) or LoRA adapter; DIR:DIR is a "
            "difference.",
            show_default=False,
        ),
    ],
    base: Annotated[
        Path | None, typer.Option(help="What checkpoints are compared to: each counts as its difference from it.")
    ] = None,
    spectra: Annotated[
        bool, typer.Option("--spectra", help="Singular values, ranks and principal angles too: minutes, not seconds.")
    ] = False,
    rank: Annotated[int, typer.Option(min=1, help="With --spectra: the dimensions of the leading subspaces.")] = 8,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML page with heat maps to write; must not exist.")
    ] = None,
    allow: AllowOption = [],  # noqa: B006 - Typer copies it
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what training changed: norms, cosines, signs and spectra, beside what chance alone would give."""
    if out is not None and os.path.lexists(out):
        raise OutputExistsError(f"{out} exists already and nothing is overwritten; choose another file or delete it")
    from skillgraft import geometry

    with phases(as_json) as progress:
        facts = geometry.compare(
            operands, base, with_spectra=spectra, rank=rank, allow=allow, threads=threads, progress=progress
        )
    if out is not None:
        from skillgraft.report.comparison import write_comparison

        write_comparison(facts, out)
    if as_json:
        print(json.dumps(facts))
        return
    from skillgraft.report.terminal_comparison import comparison_tables

    say_remarks(facts.get("remarks", []))
    for table in comparison_tables(facts):
        out_console.print(table)
    for pair in facts["pairs"]:
        say(f"{pair['one']}, {pair['other']}: {pair['sentence']}")
    if out is not None:
        say(f"heat maps: {out}")


@contextmanager
def phases(silent: bool) -> Iterator[Callable[[str], Any]]:
    """Yield a function that starts the progress bar of a phase and ends the one before."""
    with ExitStack() as stack:

        def start(phase: str) -> Any:
            stack.close()
            unit = "bytes" if phase == "comparing" else "elements"
            return stack.enter_context(progress_bar(phase, silent, unit=unit))

        yield start
