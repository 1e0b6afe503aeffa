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
    from skillgraft.chat.models import ChatModel
    from skillgraft.chat.plan import ChatAnswer, ChatModelSpec


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
    from skillgraft.chat.commands import Settings, run_command
    from skillgraft.chat.plan import plan_chat

    settings = Settings(None if target is None else scale)
    for command, value in (("/tokens", tokens), ("/temperature", temperature), ("/system", system)):
        run_command(f"{command} {value}", settings)
    if target is not None or scale != 1:
        run_command(f"/scale {scale!r}", settings)
    skills = [weighted("--skill", text) for text in skill]
    specs = plan_chat(models or [], target, skills, allow_other_base=allow_other_base, say=_say)
    chat_models = _load(specs, settings)
    talking = sys.stdin.isatty() and out_console.is_terminal and not as_json
    if talking:
        _say("/help lists the commands; Ctrl-C ends an answer, Ctrl-D the conversation")
    elif sys.stdin.isatty():
        _say("one prompt a line; Ctrl-D ends")
    for line in _typed() if talking else _piped():
        with _continuing() if talking else contextlib.nullcontext():
            if line.startswith("/") and not line.startswith("//"):
                _say(run_command(line, settings))
                _inject(chat_models, settings)
            else:
                prompt = line[1:] if line.startswith("//") else line
                _print(prompt, _answers(chat_models, prompt, settings, seed), settings, talking, as_json)
        if settings.done:
            return


def _load(specs: Sequence[ChatModelSpec], settings: Settings) -> list[ChatModel]:
    """Print how much memory the models take, load each, and inject."""
    with _busy("starting …"):
        from skillgraft.chat.models import ChatModel, bytes_per_parameter
        from skillgraft.chat.plan import size, weights_bytes

        needed, free = weights_bytes(specs, bytes_per_parameter())
    if len(specs) > 1:
        rest = "" if free is None else f", {size(free)} are free"
        _say(f"{len(specs)} models take {size(needed)} of memory{rest}")
    chat_models = []
    for number, spec in enumerate(specs, start=1):
        with _busy(f"loading {spec.label} ({number} of {len(specs)}) …"):
            chat_models.append(ChatModel(spec))
    _inject(chat_models, settings)
    return chat_models


def _inject(chat_models: Sequence[ChatModel], settings: Settings) -> None:
    if settings.scale is not None:
        with _busy(f"injecting with λ = {settings.scale:g} …"):
            for chat_model in chat_models:
                chat_model.inject(settings.scale)


def _answers(chat_models: Sequence[ChatModel], prompt: str, settings: Settings, seed: int) -> list[ChatAnswer]:
    """Ask every model and add the answers to the record; each prompt has a seed of its own."""
    from skillgraft.chat.models import record

    _inject(chat_models, settings)
    answers: list[ChatAnswer] = []
    for chat_model in chat_models:
        with _busy(f"{chat_model.spec.label} …"):
            answers.append(chat_model.answer(prompt, settings, seed + len(settings.history)))
    settings.history.append(record(prompt, settings, answers))
    return answers


def _print(prompt: str, answers: Sequence[ChatAnswer], settings: Settings, talking: bool, as_json: bool) -> None:
    from skillgraft.chat.screen import plain, side_by_side

    if as_json:
        print(json.dumps(settings.history[-1]), flush=True)
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

    from skillgraft.support.escape import escape_line

    return err_console.status(Text(escape_line(what))) if err_console.is_terminal else contextlib.nullcontext()


def _say(text: str) -> None:
    if text:
        say(text, err_console)
