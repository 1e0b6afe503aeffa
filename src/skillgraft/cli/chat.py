"""The verb `chat` on the command line: prompts from a terminal or a pipe, answers of several checkpoints."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from skillgraft.cli.completion import complete_skills
from skillgraft.cli.console import err_console, out_console, say
from skillgraft.cli.options import AllowOtherBaseOption, weighted
from skillgraft.errors import SkillgraftError

if TYPE_CHECKING:
    from skillgraft.chat.commands import Settings
    from skillgraft.chat.models import Guest
    from skillgraft.chat.plan import Asked, Seat


def chat(
    models: Annotated[
        list[str] | None, typer.Argument(help="Checkpoint directories, or the default model's id.", show_default=False)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="A checkpoint into which the skill is injected in memory.", show_default=False)
    ] = None,
    skill: Annotated[
        list[str],
        typer.Option(
            "--skill",
            metavar="SKILL[=SCALE]",
            help="Directory, name or adapter; repeatable.",
            autocompletion=complete_skills,
        ),
    ] = [],  # noqa: B006 - Typer copies it
    scale: Annotated[float, typer.Option(help="λ in target + λ·v; /scale changes it.")] = 1.0,
    tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of an answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = 0.0,
    system: Annotated[
        str, typer.Option(help="System prompt; 'default' is the one used in training, or 'none'.")
    ] = "default",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of sampling, for temperatures above 0.")] = 0,
    allow_other_base: AllowOtherBaseOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per prompt.")] = False,
) -> None:
    """Chat with several checkpoints side by side; /scale changes a skill's λ in memory, /help lists the rest.

    Each prompt is asked on its own, without the ones before. From a pipe, each line is a prompt or a command:
    printf 'Who wrote it?\\n/scale 0.5\\nWho wrote it?\\n' | skillgraft chat --target SFT --skill SKILL --json
    """
    from skillgraft.chat.commands import Settings, obey
    from skillgraft.chat.plan import plan_chat

    settings = Settings(None if target is None else scale)
    for command, value in (("/tokens", tokens), ("/temperature", temperature), ("/system", system)):
        obey(f"{command} {value}", settings)
    if target is not None or scale != 1:
        obey(f"/scale {scale!r}", settings)
    skills = [weighted("--skill", text) for text in skill]
    seats = plan_chat(models or [], target, skills, allow_other_base=allow_other_base, say=_say)
    guests = _load(seats, settings)
    talking = sys.stdin.isatty() and out_console.is_terminal and not as_json
    if talking:
        _say("/help lists the commands; Ctrl-C ends an answer, Ctrl-D the conversation")
    elif sys.stdin.isatty():
        _say("one prompt a line; Ctrl-D ends")
    for line in _typed() if talking else _piped():
        with _continuing() if talking else contextlib.nullcontext():
            if line.startswith("/") and not line.startswith("//"):
                _say(obey(line, settings))
                _inject(guests, settings)
            else:
                prompt = line[1:] if line.startswith("//") else line
                _print(prompt, _answers(guests, prompt, settings, seed), settings, talking, as_json)
        if settings.done:
            return


def _load(seats: Sequence[Seat], settings: Settings) -> list[Guest]:
    """Print how much memory the models take, load each, and inject."""
    with _busy("starting …"):
        from skillgraft.chat.models import Guest, bytes_per_parameter
        from skillgraft.chat.plan import size, weights_bytes

        needed, free = weights_bytes(seats, bytes_per_parameter())
    if len(seats) > 1:
        rest = "" if free is None else f", {size(free)} are free"
        _say(f"{len(seats)} models take {size(needed)} of memory{rest}")
    guests = []
    for number, seat in enumerate(seats, start=1):
        with _busy(f"loading {seat.label} ({number} of {len(seats)}) …"):
            guests.append(Guest(seat))
    _inject(guests, settings)
    return guests


def _inject(guests: Sequence[Guest], settings: Settings) -> None:
    if settings.scale is not None:
        with _busy(f"injecting with λ = {settings.scale:g} …"):
            for guest in guests:
                guest.inject(settings.scale)


def _answers(guests: Sequence[Guest], prompt: str, settings: Settings, seed: int) -> list[Asked]:
    """Ask every model and add the answers to the record; each prompt has a seed of its own."""
    from skillgraft.chat.models import record

    _inject(guests, settings)
    answers: list[Asked] = []
    for guest in guests:
        with _busy(f"{guest.seat.label} …"):
            answers.append(guest.answer(prompt, settings, seed + len(settings.said)))
    settings.said.append(record(prompt, settings, answers))
    return answers


def _print(prompt: str, answers: Sequence[Asked], settings: Settings, talking: bool, as_json: bool) -> None:
    from skillgraft.chat.screen import plain, side_by_side

    if as_json:
        print(json.dumps(settings.said[-1]), flush=True)
    elif talking:
        out_console.print(side_by_side(answers, out_console.width))
    else:
        print(plain(prompt, answers), flush=True)


def _typed() -> Iterator[str]:
    """Yield the lines that a person types, until the end of input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - arrow keys and history
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line:
            yield line


def _piped() -> Iterator[str]:
    """Yield the lines of standard input that hold something."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


@contextlib.contextmanager
def _continuing() -> Iterator[None]:
    """Print a mistake, or that an answer was stopped, and continue the conversation."""
    try:
        yield
    except SkillgraftError as error:
        say(str(error), err_console, "[bold red]error[/] ")
    except KeyboardInterrupt:
        _say("stopped")


def _busy(what: str) -> contextlib.AbstractContextManager[object]:
    from rich.text import Text

    from skillgraft.support.escape import visible_line

    return err_console.status(Text(visible_line(what))) if err_console.is_terminal else contextlib.nullcontext()


def _say(text: str) -> None:
    if text:
        say(text, err_console)
