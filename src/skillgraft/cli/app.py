"""The command line. Importing it loads no torch: each command imports what it needs when it runs."""

from __future__ import annotations

import gc
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from skillgraft.cli.console import err_console
from skillgraft.errors import SkillgraftError

if TYPE_CHECKING:
    app: typer.Typer

_VERBS = {
    "skillgraft.cli.run": ("run", "status"),
    "skillgraft.cli.doctor": ("doctor",),
    "skillgraft.cli.init": ("init",),
    "skillgraft.cli.schema": ("schema",),
    "skillgraft.manual.docs": ("docs",),
    "skillgraft.cli.report": ("report",),
    "skillgraft.cli.arithmetic": ("extract", "inject", "merge", "verify", "export"),
    "skillgraft.cli.compare": ("compare",),
    "skillgraft.cli.artifact": ("show", "check", "convert"),
    "skillgraft.cli.library": ("ls", "add", "remove", "push", "pull"),
    "skillgraft.cli.skills": ("pack",),
    "skillgraft.cli.retention": ("retention",),
    "skillgraft.cli.tune": ("search",),
    "skillgraft.cli.chat": ("chat",),
    "skillgraft.cli.evaluate": ("eval",),
}
"""The modules of the command line and the verbs in each, in the order of `--help`."""

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
            show_error(error)
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            err_console.print(f"stopped; {_AFTER_CTRL_C.get(str(ctx.invoked_subcommand), 'nothing was left behind')}")
            raise typer.Exit(130) from error


def show_error(error: SkillgraftError) -> None:
    """Print a user's mistake as one message, with the page that says more."""
    from skillgraft.support.escape import visible  # what a manifest says may be in the message

    err_console.print("[bold red]error[/] ", end="")
    err_console.print(visible(str(error), 20_000), soft_wrap=True, highlight=False, markup=False)
    err_console.print(f"see: skillgraft docs errors#{error.section}", style="dim", highlight=False)


def application(verb: str | None = None) -> typer.Typer:
    """Return the command line; of a known `verb` only its own module, which saves the imports of all others."""
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
    app.callback()(_nothing)  # one command alone would lose its name
    wanted = [module for module, verbs in _VERBS.items() if verb in verbs]
    for module in wanted or _VERBS:
        for name, command, example in import_module(module).VERBS:
            app.command(name=name, epilog=f"Example: {example}")(command)
    return app


def _nothing() -> None:
    pass


def __getattr__(name: str) -> Any:
    if name == "app":
        globals()["app"] = application()
        return globals()["app"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_WITHOUT_BLAS = {"extract", "inject", "merge", "verify"}
"""Verbs that multiply no matrices: the threads that NumPy's library would start for that only cost time."""
_WITH_MODELS = {"run", "eval", "search", "chat", "pack"}
"""Verbs that work for long with objects that hold much memory."""


def main() -> None:
    """Run the command line.

    What is imported lives to the end. Python's collector would walk through all of it many times, and once more when
    the interpreter ends: half of the time that a short command takes.
    """
    verb = sys.argv[1] if len(sys.argv) > 1 else None
    if verb is not None and verb not in _WITH_MODELS:
        gc.set_threshold(50_000, 20, 20)
    if verb in _WITHOUT_BLAS:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        application(verb)()
    except SkillgraftError as error:  # raised while a verb's module was imported, as by an extension
        show_error(error)
        sys.exit(2)
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
