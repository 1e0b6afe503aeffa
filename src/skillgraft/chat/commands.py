"""Slash commands of the chat: settings of the conversation, and its record. Loads no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.models.prompts import INSTRUCTION
from skillgraft.support.output import print_or_write

COLDEST = 0.01
"""Below it, logits divided by the temperature overflow, and the result is that of 0."""


@dataclass
class Settings:
    """Settings for the next prompt, and the history so far. `scale` is None if no skill is injected."""

    scale: float | None = None
    system: str = INSTRUCTION
    tokens: int = 64
    temperature: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False


def run_command(line: str, settings: Settings) -> str:
    """Run a command such as `/scale 0.5` and return the reply for the user.

    Raises:
        RecipeError: an unknown command or an invalid value; nothing is changed.
        OutputExistsError, StorageError: `/save` to a file that exists or cannot be written.
    """
    word, _, value = line.strip().partition(" ")
    if word not in COMMANDS:
        raise RecipeError(f"{word} is not a command{did_you_mean(word, COMMANDS)}; // begins a prompt with a slash")
    return COMMANDS[word](value.strip(), settings)


def _help(value: str, settings: Settings) -> str:
    return """/scale λ        inject the skill again with this λ, in memory; 0 is the target alone
/system TEXT    system message before every prompt; /system none: no message; /system default: as in training
/tokens N       longest answer
/temperature T  0: greedy decoding
/save FILE      write all prompts and answers so far as JSON lines
/help, /quit
Without a value, a command shows the current one. Prompts have no memory; // starts one with a slash."""


def _scale(value: str, settings: Settings) -> str:
    if settings.scale is None:
        raise RecipeError("/scale: no skill is injected; start with --target CHECKPOINT --skill SKILL")
    if value:
        settings.scale = _number("/scale", value, -math.inf)
    return f"λ = {settings.scale:g}"


def _system(value: str, settings: Settings) -> str:
    if value:
        settings.system = {"none": "", "default": INSTRUCTION}.get(value, value)
    return f"system: {settings.system}" if settings.system else "no system message"


def _tokens(value: str, settings: Settings) -> str:
    if value:
        if not value.isascii() or not value.isdigit() or int(value) < 1:
            raise RecipeError(f"/tokens {value}: expected a positive whole number, such as 64")
        settings.tokens = int(value)
    return f"answers of at most {settings.tokens} tokens"


def _temperature(value: str, settings: Settings) -> str:
    if value:
        number = _number("/temperature", value, 0.0)
        if 0 < number < COLDEST:
            raise RecipeError(f"/temperature {value}: expected 0, or at least {COLDEST:g}, such as 0.7")
        settings.temperature = number
    return f"temperature {settings.temperature:g}"


def _save(value: str, settings: Settings) -> str:
    if not value:
        raise RecipeError("/save: expected a file, such as /save talk.jsonl")
    file = Path(value).expanduser()
    print_or_write("".join(json.dumps(each) + "\n" for each in settings.history), file)
    return f"{file}: {len(settings.history)} prompts with their answers"


def _quit(value: str, settings: Settings) -> str:
    settings.done = True
    return ""


def _number(command: str, text: str, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < least:
        wanted = "a finite number" if least == -math.inf else f"a finite number of at least {least:g}"
        raise RecipeError(f"{command} {text}: expected {wanted}, such as 0.5")
    return value


COMMANDS: dict[str, Callable[[str, Settings], str]] = {
    "/help": _help,
    "/scale": _scale,
    "/system": _system,
    "/tokens": _tokens,
    "/temperature": _temperature,
    "/save": _save,
    "/quit": _quit,
}
