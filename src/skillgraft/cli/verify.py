"""The verb `verify` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from skillgraft.cli.console import progress_bar, say
from skillgraft.cli.options import JsonOption


def verify(
    directory: Annotated[Path, typer.Argument(help="Checkpoint directory.", show_default=False)],
    values: Annotated[bool, typer.Option("--values", help="Read every number too, for NaN and infinity.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Verify a checkpoint: headers, index, shards, ties, tokenizer, dtype, provenance; exit code 1 for an error."""
    from skillgraft.checkpoint.verify import verify_checkpoint

    with progress_bar("reading", as_json or not values) as progress:
        verification = verify_checkpoint(directory, values=values, progress=progress)
    if as_json:
        print(json.dumps(verification.as_dict()))
    else:
        for finding in verification.findings:
            colour = {"error": "red", "warning": "yellow"}.get(finding.severity, "cyan")
            say(finding.message, heading=f"[{colour}]{finding.severity}[/] ")
        say(verification.summary)
    if not verification.ok:
        raise typer.Exit(1)
