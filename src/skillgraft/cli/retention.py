"""The verb `retention` on the command line: what adapting a model cost it, outside a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from skillgraft.cli.console import err_console, out_console
from skillgraft.cli.options import JsonOption


def retention(
    models: Annotated[
        list[str], typer.Argument(help="Checkpoints, or the default model's id; the one before adapting first.")
    ],
    task: Annotated[
        list[str],
        typer.Option(help="arc_easy, arc_challenge, openbookqa, commonsense_qa, boolq, general, or a file's."),
    ] = ["general"],  # noqa: B006 - Typer copies it
    data: Annotated[Path | None, typer.Option(help="Folder with TASK.jsonl, TASK.parquet or the public sets.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Limit to the first N questions of each task.")] = None,
    text: Annotated[Path | None, typer.Option(help="Held-out text: a text file, a folder of them, or a table.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Tokens of text per forward pass; default: 1024.")] = None,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Tokens of text scored in each further window; default: 512.")
    ] = None,
    lm_eval: Annotated[
        bool, typer.Option("--lm-eval", help="Let lm-evaluation-harness score the same questions too.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure retention, what adapting must not damage: multiple-choice tasks by likelihood, and held-out text.

    Changes are taken against the first model, item by item, with 95% intervals.
    """
    from pydantic import ValidationError

    from skillgraft.errors import RecipeError
    from skillgraft.evals.compare_retention import compare_retention
    from skillgraft.recipe.validation_messages import wording
    from skillgraft.settings.evaluation import RetentionSettings

    options = {"tasks": task, "data": data, "limit": limit, "text": text}
    options |= {name: value for name, value in (("window", window), ("stride", stride)) if value is not None}
    try:
        settings = RetentionSettings.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"--task: {wording(first)}; got {first['input']!r}") from error
    result = compare_retention(models, settings, lm_eval=lm_eval, say=err_console.print)
    if as_json:
        print(json.dumps(result))
        return
    for row in result["models"]:
        out_console.print(_table(row))


def _table(row: dict[str, Any]) -> Any:
    from rich.table import Table
    from rich.text import Text

    from skillgraft.support.escape import escape_line

    from_harness = {(each["task"], each["metric"]): each for each in row.get("lm_eval", [])}
    table = Table(title=Text(escape_line(row["model"], 80)), title_justify="left")
    for name in ("task", "metric", "n", "score (95% interval)", "change from the first"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    if from_harness:
        table.add_column("lm-eval", justify="right")
        table.add_column("same items", justify="right")
    for each in row["retained"]:
        cells = [each["task"], each["metric"], f"{each['score']['n']:,}", _interval(each["score"], "{:.3f}")]
        cells.append(_interval(each["change"], "{:+.3f}") if each["change"] else "")
        if from_harness:
            score = from_harness.get((each["task"], each["metric"]))
            cells += [f"{score['mean']:.3f}", f"{score['same']:,}"] if score else ["", ""]
        table.add_row(*map(Text, cells))
    return table


def _interval(interval: dict[str, float], form: str) -> str:
    mean, low, high = (form.format(interval[end]) for end in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
