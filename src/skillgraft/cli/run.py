"""The verbs `run` and `status` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillgraft.cli.completion import complete_recipes
from skillgraft.cli.console import err_console, out_console, say
from skillgraft.cli.options import JsonOption

if TYPE_CHECKING:
    from skillgraft.evals.evaluation import Evaluation

RecipeArgument = Annotated[
    Path, typer.Argument(help="Recipe file (YAML).", show_default=False, autocompletion=complete_recipes)
]
SetOption = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override a value of the recipe.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Directory of runs and finished stages.")]


def run(
    recipe: RecipeArgument,
    overrides: SetOption = [],  # noqa: B006 - Typer copies it
    runs: RunsOption = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost; run nothing.")] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Seconds between trainer checkpoints: what an interruption can cost.", min=0)
    ] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print events, one JSON object per line.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors, and the report's path.")] = False,
) -> None:
    """Run a recipe: finished stages are reused, and an interrupted run resumes.

    Ctrl-C stops after the current step with a checkpoint, a second Ctrl-C at once. A terminal shows the stages as a
    tree while they run; elsewhere lines go to standard error. Results go to standard output. To train with several
    processes of accelerate launch: skillgraft docs how-to/several-gpus
    """
    from skillgraft import run as run_recipe
    from skillgraft.pipeline import observers
    from skillgraft.support.rank import is_first

    if not is_first():  # it helps the first process, which shows the progress
        if not dry_run:
            run_recipe(recipe)
        return
    if dry_run:
        _show_plan(recipe, overrides, runs, as_json)
        return
    options: dict[str, Any] = {"overrides": overrides, "runs": runs, "checkpoint_seconds": checkpoint_seconds}
    if as_json:
        with observers.Events() as events:
            events.run_finished(run_recipe(recipe, watcher=events, **options))
        return
    if quiet:
        result = run_recipe(recipe, **options)
    elif out_console.is_terminal and err_console.is_terminal:
        from skillgraft.cli.live_tree import LiveTree

        with LiveTree(err_console) as tree:
            result = run_recipe(recipe, watcher=tree, **options)
    else:
        result = run_recipe(recipe, watcher=observers.Lines(), **options)
    if not quiet:
        _show_evaluations(result.evaluations)
        if result.cached:
            out_console.print("All stages were cached: nothing had to run.")
    say(f"Report: {result.report}", out_console)


def _show_evaluations(evaluations: list[Evaluation]) -> None:
    from skillgraft.report.terminal import headline, score_table

    for evaluation in evaluations:
        out_console.print(score_table(evaluation))
        out_console.print(headline(evaluation))


def _show_plan(recipe_file: Path, overrides: list[str], runs: Path, as_json: bool) -> None:
    from skillgraft.pipeline.estimate import estimate
    from skillgraft.pipeline.preflight import check_plan
    from skillgraft.run import prepare

    recipe, base, stages = prepare(recipe_file, overrides, runs, err_console.print)
    remarks = check_plan(stages)
    rows = estimate(stages, base)
    resolved = json.loads(recipe.model_dump_json(by_alias=True, exclude_defaults=True))
    if as_json:
        print(json.dumps({"recipe": resolved, "base": str(base), "stages": rows, "remarks": remarks}))
        return
    import yaml

    print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=1000))
    from rich.table import Table

    table = Table("stage", "kind", "state", "time", "memory", "disk", "directory")
    for row in rows:
        cells = ["" if row["state"] == "cached" else row[key] for key in ("time", "memory", "disk")]
        table.add_row(row["name"], row["kind"], row["state"], *cells, Path(row["directory"]).name)
    out_console.print(table)
    for remark in remarks:
        say(f"remark: {remark}", err_console)
    out_console.print(f"Base: {base}. The costs are rough estimates; nothing was run.", soft_wrap=True)


def status(
    runs: Annotated[Path, typer.Argument(help="Directory of runs.")] = Path("runs"), as_json: JsonOption = False
) -> None:
    """Show the status of stages: finished, or interrupted and at which step."""
    from skillgraft.pipeline.status import list_stages

    rows = list_stages(runs)
    if as_json:
        print(json.dumps(rows))
        return
    from rich.table import Table

    table = Table("stage", "kind", "state", "time", "directory")
    for row in rows:
        table.add_row(row["name"], row["kind"], row["state"], row["time"], row["directory"])
    out_console.print(table if rows else f"{runs} holds no stages yet; start one: skillgraft run RECIPE.yaml")
