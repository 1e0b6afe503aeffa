"""The verb `report` on the command line."""

from __future__ import annotations

import json
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from skillgraft.cli.completion import complete_runs
from skillgraft.cli.console import err_console, say
from skillgraft.cli.options import JsonOption
from skillgraft.errors import OutputExistsError, RecipeError, StorageError

if TYPE_CHECKING:
    from skillgraft.report.facts import Facts


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN", help="Folder of a finished run, such as runs/quickstart.", autocompletion=complete_runs
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the report; one run's own folder if not given.")
    ] = None,
    ranks: Annotated[
        bool, typer.Option(help="Compute ranks of what training changed, once: seconds to minutes.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Report on a run, or on several side by side: report.json, and report.html, a page that needs nothing else."""
    from skillgraft.cli.compare import phases
    from skillgraft.report import headline, read_report, write_report
    from skillgraft.report.gather import renew
    from skillgraft.report.run_comparison import main_evaluation, render_runs

    if len(runs) > 1 and out is None:
        raise RecipeError(f"{len(runs)} runs and no folder for their report; expected -o FOLDER")
    own = len(runs) == 1 and (out is None or out.resolve() == runs[0].resolve())
    if out is not None and not own and (out / "run.json").exists():
        raise OutputExistsError(f"{out} is a run's folder, whose own report would be lost; choose another -o")
    if len({run.resolve() for run in runs}) < len(runs):
        raise RecipeError(f"{', '.join(map(str, runs))}: a run was given twice; expected different runs")
    facts_by_run: dict[str, Facts] = {}
    for directory in runs:
        facts = read_report(directory)
        with phases(as_json) as progress:
            new = renew(facts, directory, with_ranks=ranks, progress=progress)
        if not own and new["geometry"]["cells"] and new["geometry"] != facts.get("geometry"):
            with suppress(StorageError):  # a run that may only be read is shown all the same
                write_report(new, directory)  # so that nothing is computed twice
        facts_by_run[_name(directory, facts_by_run)] = new
    if len(runs) == 1:
        page = write_report(next(iter(facts_by_run.values())), out or runs[0])
    else:
        page = write_report({"runs": facts_by_run}, out or runs[0], render_runs(facts_by_run))
    evaluations = {name: main_evaluation(facts) for name, facts in facts_by_run.items()}
    headlines = {name: headline(evaluation) if evaluation else "" for name, evaluation in evaluations.items()}
    if as_json:
        print(json.dumps({"report": str(page), "facts": str(page.with_suffix(".json")), "runs": headlines}))
        return
    for name, facts in facts_by_run.items():
        if reason := facts["geometry"]["missing"]:
            say(f"{name}: {reason}", err_console)
    for name, sentence in headlines.items():
        if sentence:
            say(f"{name}: {sentence}" if len(headlines) > 1 else sentence)
    say(f"Report: {page}")


def _name(directory: Path, taken: Collection[str]) -> str:
    """Return the folder's name, with its parents where that is taken."""
    parts = directory.resolve().parts
    names = ("/".join(parts[-length:]) for length in range(1, len(parts) + 1))
    return next(name for name in names if name not in taken)
