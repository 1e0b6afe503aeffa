"""Options and arguments that several verbs share, and the parsing of their DIR=WEIGHT and NAME=VALUE."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from skillgraft.cli.completion import complete_skills
from skillgraft.errors import RecipeError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Directory to write; must not exist.", show_default=False)]
DtypeOption = Annotated[
    str | None, typer.Option(help="Output dtype (float32 loses nothing of a skill); default: the target's own.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads; default: the cores, at most 8.")]
ParameterOption = Annotated[
    list[str], typer.Option("--parameter", metavar="NAME=VALUE", help="A parameter of the method: density=0.2.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, or cuda where a GPU is.")]
AllowOption = Annotated[
    list[str], typer.Option(help="Continue although these differ: base, missing, tokenizer or architecture.")
]
AllowOtherBaseOption = Annotated[
    bool, typer.Option("--allow-other-base", help="Inject although the target comes from another base.")
]
SkillArgument = Annotated[
    str,
    typer.Argument(
        metavar="SKILL",
        help="Skill directory or name in the library.",
        show_default=False,
        autocompletion=complete_skills,
    ),
]
SkillOrAdapterArgument = Annotated[
    str,
    typer.Argument(
        metavar="SKILL",
        help="Skill directory, name in the library, or PEFT adapter.",
        show_default=False,
        autocompletion=complete_skills,
    ),
]


def weighted(option: str, text: str) -> tuple[str, float]:
    """Return the two parts of an option's DIR=WEIGHT; without a weight, 1."""
    path, _, weight = text.rpartition("=")
    if not path:
        return text, 1.0
    try:
        return path, float(weight)
    except ValueError as error:
        raise RecipeError(
            f"{option} {text}: {weight!r} is no number; expected DIR or DIR=WEIGHT (a name with = needs its weight)"
        ) from error


def named_value(text: str) -> tuple[str, Any]:
    """Return the two parts of --parameter NAME=VALUE, the value read as YAML."""
    import yaml

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise RecipeError(f"--parameter {text}: expected NAME=VALUE, such as density=0.2")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--parameter {text}: {value!r} is no YAML value; expected one such as 0.2") from error
