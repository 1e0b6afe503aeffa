"""The verb `eval` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from skillgraft.cli.console import err_console, out_console, say
from skillgraft.cli.options import JsonOption


def evaluate(
    models: Annotated[list[str], typer.Argument(help="Checkpoint directories, or the default model's id.")],
    questions: Annotated[Path, typer.Option(help="Table (.jsonl, .csv, …) with document, question, answers.")],
    retention: Annotated[bool, typer.Option(help="Score the general-knowledge questions too.")] = True,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 32,
    as_json: JsonOption = False,
) -> None:
    """Evaluate checkpoints closed-book on the same questions; differences are taken against the first."""
    from skillgraft.evals.standalone import evaluate_models

    evaluation = evaluate_models(
        models, questions, retention=retention, max_new_tokens=max_new_tokens, say=err_console.print
    )
    if as_json:
        print(json.dumps(evaluation))
        return
    from skillgraft.report.terminal import score_table

    out_console.print(score_table(evaluation))
    for row in evaluation["comparisons"]:
        text = f"{row['row']} - {row['against']}, {row['metric']}: {row['difference']:+.3f}"
        say(f"{text} [{row['low']:+.3f}, {row['high']:+.3f}]")
