"""The verb `init` on the command line: a first recipe from a user's documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillgraft.checkpoint.default_model import DEFAULT_BASE
from skillgraft.cli.console import err_console, say
from skillgraft.cli.options import JsonOption

if TYPE_CHECKING:
    from skillgraft.starter import Started


def init(
    documents: Annotated[
        Path,
        typer.Argument(help="Folder of text files, or a table (.jsonl, .csv, …) with id, title, text."),
    ] = Path("documents"),
    base: Annotated[str, typer.Option(help="Checkpoint directory or hub id.")] = DEFAULT_BASE,
    questions: Annotated[
        Path | None,
        typer.Option(help="Table with document, question, answers; default: questions.jsonl beside the documents."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(help="Folder of other documents with questions.jsonl: learn a skill there, take no shipped one."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Recipe to write; must not exist.")] = Path("recipe.yaml"),
    as_json: JsonOption = False,
) -> None:
    """Initialise a recipe for your documents: commented, fitted to this machine, and running as it is."""
    from skillgraft.starter import write_recipe

    started = write_recipe(documents, base=base, out=out, questions=questions, source=source)
    if as_json:
        print(json.dumps(_facts(started)))
    else:
        _show(started)


def _facts(started: Started) -> dict[str, Any]:
    start, cost = started.start, started.cost
    return {
        "recipe": str(started.recipe),
        "documents": {
            "path": str(start.documents.path),
            "count": start.documents.count,
            "words": start.documents.words,
            "tokens": start.documents.tokens,
            "tokens_counted": start.documents.counted,
            "passed_over": start.documents.passed_over,
        },
        "questions": {"path": str(start.questions), "count": start.question_count} if start.questions else None,
        "base": {
            "name": start.base.name,
            "directory": str(start.base.directory) if start.base.directory else None,
            "parameters": start.base.parameters,
        },
        "training": "lora" if start.lora else "full",
        "skill": _skill(started),
        "seconds": cost.seconds if cost else None,
        "memory_bytes": cost.memory if cost else None,
        "disk_bytes": cost.disk if cost else None,
        "next": _command(started.recipe),
    }


def _skill(started: Started) -> str | None:
    if started.start.source is not None:
        return f"learnt on {started.start.source}"
    return "squad-recall" if started.start.base.fits_shipped else None


def _show(started: Started) -> None:
    from skillgraft.starter.write import shell_path
    from skillgraft.support.units import duration

    start, cost = started.start, started.cost
    counted = "by the base's tokenizer" if start.documents.counted else "estimated: the base is not on this machine yet"
    count = start.documents.count
    rows = {
        "documents": f"{count} in {start.documents.path}: {start.documents.words:,} words, "
        f"{start.documents.tokens:,} tokens ({counted})"
        + (f"; passed over: {start.documents.passed_over}" if start.documents.passed_over else ""),
        "questions": f"{start.question_count} in {start.questions}"
        if start.questions
        else "none: nothing will be measured; the recipe says where to put them",
        "base": start.base.name
        + (f": {start.base.parameters / 1e6:,.0f} M parameters" if start.base.parameters else ": size not known yet"),
        "training": ("LoRA" if start.base.parameters is None else "LoRA: all weights would not fit the memory")
        if start.lora
        else "all weights",
        "skill": _skill(started) or "none: the shipped one fits another base; --source FOLDER learns one",
    }
    if cost is not None:
        free = start.memory.total if start.memory.available is None else start.memory.available
        rows["takes"] = (
            f"about {duration(cost.seconds)}, {cost.memory / 2**30:.1f} GiB of memory "
            f"({free / 2**30:.1f} free), {cost.disk / 2**30:.1f} GiB of disk"
        )
        if cost.memory > free:
            err_console.print("[yellow]warning[/] the recipe takes more memory than is free now")
    for name, text in rows.items():
        say(f"{name:<11}{text}")
    say(f"\nWrote {shell_path(started.recipe)}. Next:")
    for command in (f"{_command(started.recipe)} --dry-run", _command(started.recipe)):
        say(f"  {command}")


def _command(recipe: Path) -> str:
    from skillgraft.starter.write import shell_path

    return f"skillgraft run {shell_path(recipe)}"
