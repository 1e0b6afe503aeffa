"""The verb `docs` on the command line: the documentation, offline, page by page."""

from __future__ import annotations

from typing import Annotated

import typer

from skillgraft.cli.completion import beginning
from skillgraft.cli.console import out_console


def complete_pages(incomplete: str) -> list[str]:
    """Complete pages of the documentation, by their full names or the last part of them."""
    from skillgraft.manual.pages import page_names

    names = page_names()
    return beginning([*(name.rpartition("/")[2] for name in names), *names], incomplete)


def docs(
    page: Annotated[
        str | None,
        typer.Argument(
            metavar="PAGE[#SECTION]",
            help="Page, such as tutorial or errors#recipe; default: list them.",
            show_default=False,
            autocompletion=complete_pages,
        ),
    ] = None,
) -> None:
    """Show a page of the documentation, or one section of it; errors name theirs. Needs no network.

    On a terminal the text is laid out; elsewhere it is Markdown as it is written.
    """
    from skillgraft.manual.pages import page_names, read_section, title

    if page is not None:
        _show(read_section(page))
        return
    for name in page_names():
        out_console.print(f"{name:<40}{title(name)}", highlight=False, markup=False, soft_wrap=True)


def _show(text: str) -> None:
    if not out_console.is_terminal:
        print(text, end="")
        return
    from rich.markdown import Markdown

    out_console.print(Markdown(text))
