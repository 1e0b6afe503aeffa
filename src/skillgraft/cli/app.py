"""The command line: the table of its verbs, and the groups that load a verb's module when it is typed.

Importing this loads no torch, and typing a verb loads that verb's module alone. To add a verb, write its function and
add one line to `VERBS`.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from skillgraft.cli.console import err_console, say
from skillgraft.errors import RecipeError, SkillgraftError, did_you_mean
from skillgraft.support.escape import escape_line


@dataclass(frozen=True)
class Verb:
    """One command: its function, the example that its help ends with, and what its process needs."""

    function: str
    """`module:name`; its docstring is the help."""
    example: str
    after_ctrl_c: str = "nothing was left behind"
    without_blas: bool = False
    """It multiplies no matrices: the threads that NumPy's library would start for that only cost time."""
    with_models: bool = False
    """It works for long with objects that hold much memory, which Python's collector should free."""


VERBS = {
    "doctor": Verb("skillgraft.cli.doctor:doctor", "skillgraft doctor --json"),
    "init": Verb("skillgraft.cli.init:init", "skillgraft init examples/almanac/target -o almanac.yaml"),
    "docs": Verb("skillgraft.manual.docs:docs", "skillgraft docs errors#recipe"),
    "schema": Verb("skillgraft.cli.schema:schema", "skillgraft schema -o recipe.schema.json"),
    "run": Verb(
        "skillgraft.cli.run:run",
        "skillgraft run recipes/quickstart.yaml --set stages.grafted.scale=0.5",
        after_ctrl_c="the same command resumes from the last checkpoint",
        with_models=True,
    ),
    "status": Verb("skillgraft.cli.run:status", "skillgraft status runs"),
    "report": Verb("skillgraft.cli.report:report", "skillgraft report runs/quickstart runs/past-squad -o both"),
    "extract": Verb(
        "skillgraft.cli.extract:extract",
        "skillgraft extract --rl my-rl-checkpoint --sft my-sft-checkpoint -o my-skill",
        without_blas=True,
    ),
    "inject": Verb(
        "skillgraft.cli.inject:inject",
        "skillgraft inject --target my-sft --skill skills/squad-recall --skill mine=0.5 -o grafted",
        without_blas=True,
    ),
    "merge": Verb(
        "skillgraft.cli.merge:merge",
        "skillgraft merge --method ties --base base --model one --model two=0.5 -o merged",
        without_blas=True,
    ),
    "verify": Verb("skillgraft.cli.verify:verify", "skillgraft verify merged --values", without_blas=True),
    "export": Verb("skillgraft.cli.export:export", "skillgraft export recipe.yaml --mergekit -o mergekit.yaml"),
    "compare": Verb(
        "skillgraft.cli.compare:compare",
        "skillgraft compare sft/one=my-sft sft/two=other rl/skill=my-skill --base base -o page.html",
    ),
    "tune": Verb(
        "skillgraft.cli.tune:tune",
        "skillgraft tune merge.yaml --questions dev.jsonl --vary weights=0,1.5 -o tuned",
        after_ctrl_c="the same command resumes from the last trial",
        with_models=True,
    ),
    "eval": Verb(
        "skillgraft.cli.evaluate:evaluate",
        "skillgraft eval base-dir sft-dir grafted-dir --questions q.jsonl",
        with_models=True,
    ),
    "retention": Verb(
        "skillgraft.cli.retention:retention",
        "skillgraft retention base-dir sft-dir --task arc_easy --data data/retention --limit 200",
    ),
    "chat": Verb(
        "skillgraft.cli.chat:chat",
        "skillgraft chat HuggingFaceTB/SmolLM2-135M-Instruct "
        "--target HuggingFaceTB/SmolLM2-135M-Instruct --skill squad-recall",
        with_models=True,
    ),
    "skill show": Verb("skillgraft.cli.skill.artifact:show", "skillgraft skill show skills/squad-recall"),
    "skill check": Verb("skillgraft.cli.skill.artifact:check", "skillgraft skill check my-sft skills/squad-recall"),
    "skill convert": Verb(
        "skillgraft.cli.skill.artifact:convert",
        "skillgraft skill convert skills/squad-recall --to peft -o my-adapter",
    ),
    "skill pack": Verb(
        "skillgraft.cli.skill.pack:pack",
        "skillgraft skill pack skills/squad-recall --form packed --budget 1MB -o small-skill",
        with_models=True,
    ),
    "skill ls": Verb("skillgraft.cli.skill.library:ls", "skillgraft skill ls --domain recall"),
    "skill add": Verb("skillgraft.cli.skill.library:add", "skillgraft skill add skills/squad-recall recall"),
    "skill remove": Verb("skillgraft.cli.skill.library:remove", "skillgraft skill remove recall"),
    "skill push": Verb(
        "skillgraft.cli.skill.library:push", "skillgraft skill push skills/squad-recall me/squad-recall --private"
    ),
    "skill pull": Verb("skillgraft.cli.skill.library:pull", "skillgraft skill pull me/squad-recall"),
}
"""What is typed after `skillgraft` -> the command, in the order of `--help`."""

_LOOK: dict[str, Any] = {"rich_markup_mode": "rich", "pretty_exceptions_enable": False}


@cache
def command(path: str) -> Any:
    """Return the click command of a path in `VERBS`; imports its module."""
    verb = VERBS[path]
    module, _, name = verb.function.partition(":")
    alone = typer.Typer(add_completion=False, **_LOOK)
    alone.command(name=path.rpartition(" ")[2], epilog=f"Example: {verb.example}")(getattr(import_module(module), name))
    return typer.main.get_command(alone)


class _Verbs(TyperGroup):
    """The verbs whose path begins with `prefix`, each loaded when it is asked for."""

    prefix = ""

    def list_commands(self, ctx: Any) -> list[str]:
        paths = (path.removeprefix(self.prefix) for path in VERBS if path.startswith(self.prefix))
        return list(dict.fromkeys(path.partition(" ")[0] for path in paths))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        path = self.prefix + cmd_name
        return command(path) if path in VERBS else super().get_command(ctx, cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if not ctx.resilient_parsing and args[0] not in self.list_commands(ctx):
            say(_unknown(self.prefix + args[0], self.list_commands(ctx)), err_console, "[bold red]error[/] ")
            say(f"see: skillgraft {self.prefix}--help", err_console)
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)


class _SkillVerbs(_Verbs):
    prefix = "skill "


class _AllVerbs(_Verbs):
    """Turns a user's mistake into one message and exit code 2, and Ctrl-C into exit code 130: never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except SkillgraftError as error:
            show_error(error)
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.ELOOP):
                raise
            name = str(error.filename)
            show_error(RecipeError(f"the path '{name[:57]}…' cannot be used: {error.strerror}; name another"))
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            verb = VERBS.get(str(ctx.invoked_subcommand))
            err_console.print(f"stopped; {verb.after_ctrl_c if verb else Verb.after_ctrl_c}")
            raise typer.Exit(130) from error


def _unknown(path: str, available: list[str]) -> str:
    """Return the message for a path that is no verb: where it is now, or the closest one."""
    word = path.rpartition(" ")[2]
    elsewhere = {verb.rpartition(" ")[2]: verb for verb in VERBS} | {"search": "tune"}
    if word in elsewhere:
        return f"'{path}' is {'' if ' ' in path else 'now '}'skillgraft {elsewhere[word]}'"
    return f"there is no verb '{path}'{did_you_mean(word, available)}"


def show_error(error: SkillgraftError) -> None:
    """Print a user's mistake as one message, with the page that says more."""
    say(escape_line(str(error), 20_000), err_console, "[bold red]error[/] ")
    err_console.print(f"see: skillgraft docs errors#{error.section}", style="dim", highlight=False)


def _application() -> typer.Typer:
    skill = typer.Typer(
        cls=_SkillVerbs,
        no_args_is_help=True,
        help="Skills as files: show, check, convert and pack them, keep them in a library, share them on a hub.",
        **_LOOK,
    )
    whole = typer.Typer(
        name="skillgraft",
        cls=_AllVerbs,
        no_args_is_help=True,
        add_completion=True,
        help="Learn a skill once with RL, keep it as a vector, add it to models fine-tuned on something new.",
        epilog="First steps: [bold]skillgraft doctor[/], then [bold]skillgraft init[/] FOLDER-OF-DOCUMENTS. "
        "More: [bold]skillgraft docs tutorial[/]",
        **_LOOK,
    )
    whole.add_typer(skill, name="skill")
    return whole


app = _application()


def main() -> None:
    """Run the command line.

    What is imported lives to the end. Python's collector would walk through all of it many times, and once more when
    the interpreter ends: half of the time that a short command takes.
    """
    words = sys.argv[1:]
    verb = VERBS.get(" ".join(words[:2])) or VERBS.get(" ".join(words[:1]))
    if words and not (verb and verb.with_models):
        gc.set_threshold(50_000, 20, 20)
    if verb and verb.without_blas:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app()
    except SkillgraftError as error:  # raised while a verb's module was imported for --help, as by an extension
        show_error(error)
        sys.exit(2)
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
