"""The verb `tune` on the command line: weights and numbers of a merge, tuned on questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from skillgraft.cli.completion import complete_recipes
from skillgraft.cli.console import err_console, out_console, say
from skillgraft.cli.options import JsonOption, ThreadsOption, weighted
from skillgraft.errors import RecipeError

if TYPE_CHECKING:
    from skillgraft.tuning.trials import Trial


def tune(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Merge recipe (YAML); tuning starts there.", show_default=False, autocompletion=complete_recipes
        ),
    ],
    questions: Annotated[Path, typer.Option(help="Development questions: a table with document, question, answers.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the log and the winner.", show_default=False)],
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=LOW,HIGH", help="weights, or a number of the method (density); default: weights=0,1.5."
        ),
    ] = [],  # noqa: B006 - Typer copies it
    per_layer: Annotated[
        int | None, typer.Option(min=1, metavar="GROUPS", help="A weight for each of GROUPS groups of layers.")
    ] = None,
    metric: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[=WEIGHT]",
            help="f1 (default), containment, exact_match or answer_likelihood, which is smooth; repeated: their sum.",
        ),
    ] = [],  # noqa: B006
    by: Annotated[str | None, typer.Option(help="cmaes (default), grid (default for one number) or random.")] = None,
    trials: Annotated[
        int, typer.Option(help="Candidates to score, including the target alone and the recipe as it is.")
    ] = 30,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    report_questions: Annotated[
        Path | None, typer.Option(help="Other questions, on which the winner is scored once.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tune weights and densities of a merge recipe on development questions; resumes after interruption."""
    ranges = dict(_range(text) for text in vary) or None
    metrics = dict(weighted("--metric", text) for text in metric) or None
    from skillgraft.tuning.loop import tune as tune_weights

    def say_trial(trial: Trial) -> None:
        if not as_json:
            say(_line(trial), err_console)

    result = tune_weights(
        recipe,
        questions,
        out,
        vary=ranges,
        per_layer=per_layer,
        metric=metrics,
        by=by,
        trials=trials,
        seed=seed,
        report_questions=report_questions,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        threads=threads,
        on_trial=say_trial,
    )
    if as_json:
        print(json.dumps(result))
        return
    _show(result, out)


def _show(result: dict[str, Any], out: Path) -> None:
    name = " + ".join(n if w == 1 else f"{w:g} {n}" for n, w in result["metric"].items())
    report = result["report"]
    table = Table(
        "", f"{name}, {result['questions']} questions", *([f"{report['questions']} others"] if report else [])
    )
    rows = {"target alone": "target_alone", "recipe as it is": "recipe_as_it_is", "winner": "winner"}
    for label, key in rows.items():
        if result[key] is not None:
            other = [_interval(report[key]) if key in report else ""] if report else []
            table.add_row(label, _interval(result[key]), *other)
    out_console.print(table)
    values = ", ".join(f"{key} = {value:.4g}" for key, value in result["winner"]["values"].items())
    more = "" if report else "; --report-questions FILE scores it on others"
    lines = [
        f"winner: trial {result['winner']['trial']}, {result['winner']['what']}{'; ' if values else ''}{values}",
        f"{result['note']}{more}",
        f"{out / result['recipe']}, {out / result['checkpoint']}",
    ]
    if report and "difference" in report:
        gain = report["difference"]
        interval = f"[{gain['low']:+.3f}, {gain['high']:+.3f}]"
        lines.insert(2, f"winner - target on the others: {gain['mean']:+.3f} {interval}")
    for line in lines:
        say(line)


def _interval(row: dict[str, Any]) -> str:
    if row["score"] is None:
        return "no number"
    return f"{row['score']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _line(trial: Trial) -> str:
    values = ", ".join(f"{key} {value:.3g}" for key, value in trial.values.items())
    score = "no number" if trial.score is None else f"{trial.score:.4f} ({trial.low:.4f} to {trial.high:.4f})"
    return f"trial {trial.trial}, {trial.what}: {score}, {trial.seconds:.1f} s{'; ' if values else ''}{values}"


def _range(text: str) -> tuple[str, tuple[float, float]]:
    name, equals, bounds = text.partition("=")
    low, comma, high = bounds.partition(",")
    try:
        if not name or not equals or not comma:
            raise ValueError
        return name, (float(low), float(high))
    except ValueError as error:
        raise RecipeError(f"--vary {text}: expected NAME=LOW,HIGH, such as density=0.05,0.9") from error
