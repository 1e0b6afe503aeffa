"""The verb `inject` on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from skillgraft.cli.completion import complete_methods, complete_skills
from skillgraft.cli.console import progress_bar, say, say_remarks
from skillgraft.cli.options import (
    AllowOtherBaseOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    OutOption,
    ParameterOption,
    ThreadsOption,
    named_value,
    weighted,
)
from skillgraft.errors import RecipeError


def inject(
    target: Annotated[Path, typer.Option(help="The SFT checkpoint that is to receive the skill.")],
    skill: Annotated[
        list[str],
        typer.Option(
            "--skill",
            metavar="DIR[=SCALE]",
            help="Skill (directory or name in the library) or PEFT LoRA adapter; repeatable.",
            autocompletion=complete_skills,
        ),
    ],
    out: OutOption,
    scale: Annotated[
        float | None,
        typer.Option(help="λ in target + λ·v; default: 1. A negative one takes out what was injected."),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(metavar="λ,λ,…", help="Several λ at once: read once, write OUT/scale-λ for each."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="How several skills become one v: task_arithmetic, their sum, or ties, dare_ties, …",
            autocompletion=complete_methods,
        ),
    ] = "task_arithmetic",
    parameter: ParameterOption = [],  # noqa: B006 - Typer copies it
    original: Annotated[
        Path | None,
        typer.Option(help="To take a skill out exactly: the checkpoint from before, if it has moved."),
    ] = None,
    dtype: DtypeOption = None,
    allow_other_base: AllowOtherBaseOption = False,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Inject skills into a checkpoint: target + scale · skills, with the target's config and tokenizer."""
    if scale is not None and scales is not None:
        raise RecipeError(f"--scale {scale:g} and --scales {scales} were given; expected one of them")
    if original is not None and scales is not None:
        raise RecipeError("--original and --scales were given; expected --original with one --scale")
    lambdas = None if scales is None else _numbers(scales)
    skills = [weighted("--skill", text) for text in skill]
    from skillgraft import arithmetic

    options: dict[str, Any] = {
        "method": method,
        "parameters": dict(named_value(text) for text in parameter),
        "dtype": dtype,
        "allow_other_base": allow_other_base,
        "threads": threads,
        "device": device,
    }
    with progress_bar("injecting", as_json) as progress:
        if lambdas is None:
            one = 1.0 if scale is None else scale
            report = arithmetic.inject(target, skills, out, scale=one, original=original, progress=progress, **options)
            reports = {str(out): report}
        else:
            by_name = arithmetic.inject_scales(target, skills, out, lambdas, progress=progress, **options)
            reports = {str(out / name): report for name, report in by_name.items()}
    if as_json:
        print(json.dumps(reports if lambdas is not None else reports[str(out)]))
        return
    say_remarks(next(iter(reports.values())).get("remarks", []))
    for path, report in reports.items():
        say(f"{path}: λ = {report['scale']:g}")
        if "removal" in report:
            _say_removal(report["removal"])
        else:
            say_survival(report)


def say_survival(report: dict[str, Any]) -> None:
    """Print how much of a skill survived output rounding, and the remedy where that is little."""
    worst = report.get("worst")
    where = f" (worst tensor {worst['name']}: {_percent(worst['survived_rounding'])})" if worst else ""
    say(f"skill survived rounding: {_percent(report['survived_rounding'])}{where}")
    if report["survived_rounding"] < 0.9:
        say("more of it survives with --dtype float32")


def _say_removal(removal: dict[str, Any]) -> None:
    if removal["exact"]:
        say(f"taken out, exact: the original's own bytes ({removal['original']})")
    elif removal["bound"] is None:
        say("taken out of a checkpoint that is not surely what was injected: how far off it is, is not known")
    else:
        most = f"; at most {removal['elements']:,} numbers are off" if "elements" in removal else ""
        say(f"taken out, within {removal['relative']:.1e} relative ({removal['rounding']}){most}")


def _percent(share: float) -> str:
    return f"{share if abs(share) >= 5e-4 else 0.0:.1%}"  # no -0.0% where sums of squares differ in their last digit


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"--scales {text}: expected numbers such as 0,0.25,0.5,1") from error
