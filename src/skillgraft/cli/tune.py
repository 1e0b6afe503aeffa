"""`skillgraft search` on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from skillgraft.cli.arithmetic import JsonOption, ThreadsOption, weighted
from skillgraft.cli.completion import complete_recipes
from skillgraft.cli.console import err_console, out_console
from skillgraft.errors import RecipeError

if TYPE_CHECKING:
    from skillgraft.tuning.trials import Look


def search(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Merge recipe (YAML); the search starts there.", show_default=False, autocompletion=complete_recipes
        ),
    ],
    questions: Annotated[Path, typer.Option(help="Development questions: JSONL with document, question, answers.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the log and the winner.", show_default=False)],
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=LOW,HIGH", help="weights, or a number of the method (density); default: weights=0,1.5."
        ),
    ] = [],  # noqa: B006 - Typer copies it
    per_layer: Annotated[
        int | None, typer.Option(min=1, metavar="GROUPS", help="A weight for each of so many groups of layers.")
    ] = None,
    metric: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[=WEIGHT]",
            help="f1 (default), containment, exact_match or answer_likelihood, which is smooth; repeated: their sum.",
        ),
    ] = [],  # noqa: B006
    by: Annotated[str | None, typer.Option(help="cmaes (default), grid (default for one number) or random.")] = None,
    looks: Annotated[
        int, typer.Option(help="Candidates to score, the target and the recipe as it is among them.")
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
    """Search weights and densities of a merge recipe on development questions; killed, it goes on where it stopped."""
    ranges = dict(_range(text) for text in vary) or None
    metrics = dict(weighted("--metric", text) for text in metric) or None
    from skillgraft.tuning.loop import search as run_search

    def looked(look: Look) -> None:
        if not as_json:
            err_console.print(_line(look), soft_wrap=True, highlight=False, markup=False)

    result = run_search(
        recipe,
        questions,
        out,
        vary=ranges,
        per_layer=per_layer,
        metric=metrics,
        by=by,
        looks=looks,
        seed=seed,
        report_questions=report_questions,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        threads=threads,
        looked=looked,
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
        f"winner: look {result['winner']['look']}, {result['winner']['what']}{'; ' if values else ''}{values}",
        f"{result['note']}{more}",
        f"{out / result['recipe']}, {out / result['checkpoint']}",
    ]
    if report and "difference" in report:
        gain = report["difference"]
        said = f"winner - target on the others: {gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
        lines.insert(2, said)
    for line in lines:
        out_console.print(line, soft_wrap=True, highlight=False, markup=False)


def _interval(row: dict[str, Any]) -> str:
    if row["score"] is None:
        return "no number"
    return f"{row['score']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _line(look: Look) -> str:
    values = ", ".join(f"{key} {value:.3g}" for key, value in look.values.items())
    score = "no number" if look.score is None else f"{look.score:.4f} ({look.low:.4f} to {look.high:.4f})"
    return f"look {look.look}, {look.what}: {score}, {look.seconds:.1f} s{'; ' if values else ''}{values}"


def _range(text: str) -> tuple[str, tuple[float, float]]:
    name, equals, bounds = text.partition("=")
    low, comma, high = bounds.partition(",")
    try:
        if not name or not equals or not comma:
            raise ValueError
        return name, (float(low), float(high))
    except ValueError as error:
        raise RecipeError(f"--vary {text}: expected NAME=LOW,HIGH, such as density=0.05,0.9") from error


VERBS: list[tuple[str, Callable[..., None], str]] = [
    ("search", search, "skillgraft search merge.yaml --questions dev.jsonl --vary weights=0,1.5 -o search")
]
