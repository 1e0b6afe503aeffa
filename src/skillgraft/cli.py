"""The command line. Importing it loads no torch: each command imports what it needs when it runs."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from typer.core import TyperGroup

from skillgraft.cli_arithmetic import ARITHMETIC
from skillgraft.cli_artefact import ARTEFACT
from skillgraft.cli_chat import EXAMPLE as CHAT_EXAMPLE
from skillgraft.cli_chat import chat
from skillgraft.cli_compare import COMPARING
from skillgraft.cli_docs import docs
from skillgraft.cli_doctor import doctor
from skillgraft.cli_init import init
from skillgraft.cli_library import LIBRARY
from skillgraft.cli_report import REPORTING
from skillgraft.cli_retention import RETENTION
from skillgraft.cli_schema import schema
from skillgraft.cli_search import search
from skillgraft.cli_skills import SKILLS
from skillgraft.completion import complete_recipes
from skillgraft.console import err_console, out_console
from skillgraft.errors import SkillgraftError

_AFTER_CTRL_C = {
    "run": "the same command goes on from the last checkpoint",
    "search": "the same command goes on from the last look",
}


class _Guarded(TyperGroup):
    """Turns a user's mistake into one message and exit code 2, and Ctrl-C into exit code 130: never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SkillgraftError as error:
            err_console.print("[bold red]error[/] ", end="")
            from skillgraft.visible import visible  # what a manifest says may be in the message

            err_console.print(visible(str(error), 20_000), soft_wrap=True, highlight=False, markup=False)
            err_console.print(f"see: skillgraft docs errors#{error.section}", style="dim", highlight=False)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            err_console.print(f"stopped; {_AFTER_CTRL_C.get(str(ctx.invoked_subcommand), 'nothing was left behind')}")
            raise typer.Exit(130) from error


app = typer.Typer(
    name="skillgraft",
    cls=_Guarded,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Learn a skill once with RL, keep it as a vector, graft it onto models fine-tuned on something new.",
    epilog="First steps: [bold]skillgraft doctor[/], then [bold]skillgraft init[/] FOLDER-OF-DOCUMENTS. "
    "More: [bold]skillgraft docs tutorial[/]",
)
RecipeArgument = Annotated[
    Path, typer.Argument(help="Recipe file (YAML).", show_default=False, autocompletion=complete_recipes)
]
SetOption = Annotated[list[str], typer.Option("--set", metavar="A.B=C", help="Override a value of the recipe.")]
RunsOption = Annotated[Path, typer.Option("--runs", help="Where runs and finished stages are kept.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


@app.command(epilog="Example: skillgraft run recipes/quickstart.yaml --set stages.grafted.scale=0.5")
def run(
    recipe: RecipeArgument,
    overrides: SetOption = [],  # noqa: B006 - Typer copies it
    runs: RunsOption = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost; run nothing.")] = False,
    checkpoint_seconds: Annotated[
        float, typer.Option(help="Seconds between trainer checkpoints: what a kill can cost.", min=0)
    ] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print events for scripts, one JSON object a line.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors, and the report's path.")] = False,
) -> None:
    """Run a recipe: finished stages are reused, a killed run goes on where it stopped.

    Ctrl-C stops after the current step with a checkpoint, a second one at once. On a terminal the stages are drawn as
    a tree while they run; elsewhere lines go to standard error. Results go to standard output. Several processes of
    accelerate launch train together: skillgraft docs how-to/several-gpus
    """
    from skillgraft import run as run_recipe
    from skillgraft import several, watch

    if not several.is_first():  # it helps the first, which shows how the run goes
        if not dry_run:
            run_recipe(recipe)
        return
    if dry_run:
        _show_plan(recipe, overrides, runs, as_json)
        return
    options: dict[str, Any] = {"overrides": overrides, "runs": runs, "checkpoint_seconds": checkpoint_seconds}
    if as_json:
        with watch.Events() as events:
            events.run_finished(run_recipe(recipe, watcher=events, **options))
        return
    if quiet:
        result = run_recipe(recipe, **options)
    elif out_console.is_terminal and err_console.is_terminal:
        from skillgraft.live_tree import LiveTree

        with LiveTree(err_console) as tree:
            result = run_recipe(recipe, watcher=tree, **options)
    else:
        result = run_recipe(recipe, watcher=watch.Lines(), **options)
    if not quiet:
        _show_evaluations(result.evaluations)
        if result.cached:
            out_console.print("All stages were cached: nothing had to run.")
    out_console.print(f"Report: {result.report}", soft_wrap=True, highlight=False, markup=False)


def _show_evaluations(evaluations: list[Any]) -> None:
    from skillgraft.report.terminal import headline, score_table

    for evaluation in evaluations:
        out_console.print(score_table(evaluation))  # type: ignore[arg-type]
        out_console.print(headline(evaluation))


def _show_plan(recipe_file: Path, overrides: list[str], runs: Path, as_json: bool) -> None:
    from skillgraft.estimate import estimate
    from skillgraft.run import check_skills, check_trainers, prepare

    recipe, base, stages = prepare(recipe_file, overrides, runs, err_console.print)
    check_trainers(stages)
    check_skills(recipe, base, stages)
    rows = estimate(stages, base)
    resolved = json.loads(recipe.model_dump_json(by_alias=True, exclude_defaults=True))
    if as_json:
        print(json.dumps({"recipe": resolved, "base": str(base), "stages": rows}))
        return
    import yaml

    print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=1000))
    table = Table("stage", "kind", "state", "time", "memory", "disk", "directory")
    for row in rows:
        cells = ["" if row["state"] == "cached" else row[key] for key in ("time", "memory", "disk")]
        table.add_row(row["name"], row["kind"], row["state"], *cells, Path(row["directory"]).name)
    out_console.print(table)
    out_console.print(f"Base: {base}. The costs are rough estimates; nothing was run.", soft_wrap=True)


@app.command(epilog="Example: skillgraft status runs")
def status(
    runs: Annotated[Path, typer.Argument(help="Where runs are kept.")] = Path("runs"), as_json: JsonOption = False
) -> None:
    """Show finished and interrupted stages, with how far training came."""
    from skillgraft.status import list_stages

    rows = list_stages(runs)
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("stage", "kind", "state", "time", "directory")
    for row in rows:
        table.add_row(row["name"], row["kind"], row["state"], row["time"], row["directory"])
    out_console.print(table if rows else f"{runs} holds no stages yet; start one: skillgraft run RECIPE.yaml")


FIRST_STEPS: list[tuple[str, Callable[..., None], str]] = [
    ("doctor", doctor, "skillgraft doctor --json"),
    ("init", init, "skillgraft init examples/almanac/target -o almanac.yaml"),
    ("schema", schema, "skillgraft schema -o recipe.schema.json"),
    ("docs", docs, "skillgraft docs errors#recipe"),
]
for verb, command, example in (
    *FIRST_STEPS,
    *REPORTING,
    *ARITHMETIC,
    *COMPARING,
    *ARTEFACT,
    *LIBRARY,
    *SKILLS,
    *RETENTION,
):
    app.command(name=verb, epilog=f"Example: {example}")(command)
app.command(epilog="Example: skillgraft search merge.yaml --questions dev.jsonl --vary weights=0,1.5 -o search")(search)


app.command(epilog=f"Example: {CHAT_EXAMPLE}")(chat)


@app.command(name="eval", epilog="Example: skillgraft eval base-dir sft-dir grafted-dir --questions q.jsonl")
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Checkpoint directories, or the default model's id.")],
    questions: Annotated[Path, typer.Option(help="JSONL with document, question, answers.")],
    retention: Annotated[bool, typer.Option(help="Score the general-knowledge questions too.")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    as_json: JsonOption = False,
) -> None:
    """Score checkpoints closed-book on the same questions; differences are taken against the first."""
    from skillgraft.evals.standalone import evaluate_models

    evaluation = evaluate_models(
        models, questions, retention=retention, max_new_tokens=max_new_tokens, say=err_console.print
    )
    if as_json:
        print(json.dumps(evaluation))
        return
    from skillgraft.report.terminal import score_table

    out_console.print(score_table(evaluation))  # type: ignore[arg-type]
    for row in evaluation["comparisons"]:
        text = f"{row['row']} - {row['against']}, {row['metric']}: {row['difference']:+.3f}"
        out_console.print(f"{text} [{row['low']:+.3f}, {row['high']:+.3f}]", highlight=False, markup=False)


_WITH_MODELS = {"run", "eval", "search", "chat", "pack"}
"""Verbs that work for long with objects that hold much memory."""


def main() -> None:
    """Run the command line.

    What is imported lives to the end. Python's collector would walk through all of it many times, and once more when
    the interpreter ends: half of the time that a short command takes.
    """
    if sys.argv[1:2] and sys.argv[1] not in _WITH_MODELS:
        gc.set_threshold(50_000, 20, 20)
    try:
        app()
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
