"""The verb `report` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from skillgraft.cli.completion import complete_runs
from skillgraft.cli.console import err_console, out_console
from skillgraft.errors import OutputExistsError, RecipeError, StorageError


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """Write report.json and report.html of a run, or of several side by side: one page that needs nothing else."""
    from skillgraft.cli.compare import phases
    from skillgraft.report import headline, read_report, write_report
    from skillgraft.report.gather import renew
    from skillgraft.report.run_comparison import main_evaluation, render_runs
    from skillgraft.support.escape import visible

    if len(runs) > 1 and out is None:
        raise RecipeError(f"{len(runs)} runs and no folder for their report; expected -o FOLDER")
    own = len(runs) == 1 and (out is None or out.resolve() == runs[0].resolve())
    if out is not None and not own and (out / "run.json").exists():
        raise OutputExistsError(f"{out} is a run's folder, whose own report would be lost; choose another -o")
    if len({run.resolve() for run in runs}) < len(runs):
        raise RecipeError(f"{', '.join(map(str, runs))}: a run was given twice; expected different runs")
    found: dict[str, Any] = {}
    for directory in runs:
        facts = read_report(directory)
        with phases(as_json) as progress:
            new = renew(facts, directory, with_ranks=ranks, progress=progress)
        if not own and new["geometry"]["cells"] and new["geometry"] != facts.get("geometry"):
            with suppress(StorageError):  # a run that may only be read is shown all the same
                write_report(new, directory)  # so that nothing is computed twice
        found[_name(directory, found)] = new
    facts = next(iter(found.values()))
    if len(runs) == 1:
        page = write_report(facts, out or runs[0])
    else:
        page = write_report({"runs": found}, out or runs[0], render_runs(found))
    said = {name: headline(evaluation) if (evaluation := main_evaluation(one)) else "" for name, one in found.items()}
    missing = {name: one["geometry"]["missing"] for name, one in found.items() if one["geometry"]["missing"]}
    if as_json:
        print(json.dumps({"report": str(page), "facts": str(page.with_suffix(".json")), "runs": said}))
        return
    for name, sentence in missing.items():
        err_console.print(visible(f"{name}: {sentence}"), soft_wrap=True, highlight=False, markup=False)
    for name, sentence in said.items():
        if not sentence:
            continue
        text = f"{name}: {sentence}" if len(said) > 1 else sentence
        out_console.print(text, soft_wrap=True, highlight=False, markup=False)
    out_console.print(f"Report: {page}", soft_wrap=True, highlight=False, markup=False)


def _name(directory: Path, taken: Collection[str]) -> str:
    """Return the folder's name, with its parents where that is taken."""
    parts = directory.resolve().parts
    names = ("/".join(parts[-length:]) for length in range(1, len(parts) + 1))
    return next(name for name in names if name not in taken)


VERBS: list[tuple[str, Callable[..., None], str]] = [
    ("report", report, "skillgraft report runs/quickstart runs/past-squad -o both"),
]
