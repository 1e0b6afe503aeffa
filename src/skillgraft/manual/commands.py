"""The page of all commands, from the command line's own help."""

from __future__ import annotations

import re

_EXAMPLE = re.compile(r"^Example: (.+)$", re.MULTILINE)
_STYLE = re.compile(r"\[/?(?:bold|dim)?\]")


def commands_page() -> str:
    """Return the help of every verb as Markdown."""
    import typer
    from typer.cli import get_docs_for_click

    from skillgraft.cli.app import app

    group = typer.main.get_command(app)
    group.epilog = None  # its first steps are the tutorial's
    text = get_docs_for_click(obj=group, ctx=typer.Context(group, info_name="skillgraft"), name="skillgraft")
    text = _STYLE.sub("", text).replace("# `skillgraft`", "# Commands", 1)
    return _EXAMPLE.sub(lambda match: f"**Example**:\n\n```console\n$ {match[1]}\n```", text).rstrip() + "\n"
