"""The verb `merge` on the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillgraft.cli.completion import complete_methods, complete_recipes
from skillgraft.cli.console import err_console, progress_bar, say, say_remarks
from skillgraft.cli.inject import say_survival
from skillgraft.cli.options import (
    AllowOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ParameterOption,
    ThreadsOption,
    named_value,
    weighted,
)
from skillgraft.errors import OutputExistsError, RecipeError

if TYPE_CHECKING:
    from skillgraft.arithmetic.merge_schema import MergeRecipe


def merge(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            help="Merge recipe (YAML): method, base, operands.", show_default=False, autocompletion=complete_recipes
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory to write; must not exist.", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Without a recipe: linear, task_arithmetic, ties, pcb, …", autocompletion=complete_methods),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Without a recipe: the checkpoint that owns config, tokenizer and the rest.")
    ] = None,
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            metavar="DIR[=WEIGHT]",
            help="Without a recipe: an operand: checkpoint, LoRA adapter, or skill (or its name); repeatable.",
        ),
    ] = [],  # noqa: B006 - Typer copies it
    minus: Annotated[
        Path | None, typer.Option(help="Without a recipe: what checkpoints are subtracted from; default: the base.")
    ] = None,
    parameter: ParameterOption = [],  # noqa: B006
    dtype: DtypeOption = None,
    allow: AllowOption = [],  # noqa: B006
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    durable: Annotated[bool, typer.Option("--durable", help="Synchronise to the disk before the output appears.")] = (
        False
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, show bytes, time, memory; write nothing.")] = (
        False
    ),
    as_json: JsonOption = False,
) -> None:
    """Merge checkpoints, skills and adapters by a recipe or by flags; resumes after interruption."""
    parsed = _merge_recipe(recipe, method, base, model, minus, parameter, dtype, allow)
    if out is not None and os.path.lexists(out):  # at once: the plan reads every input for its fingerprint
        raise OutputExistsError(f"{out} exists already and nothing is overwritten; choose another output or delete it")
    if dry_run:
        _show_merge_plan(parsed, as_json)
        return
    if out is None:
        raise RecipeError("--out is missing; expected the directory to write, as in -o merged")
    from skillgraft import arithmetic

    with progress_bar("merging", as_json) as progress:
        report = arithmetic.merge(parsed, out, threads=threads, device=device, durable=durable, progress=progress)
    if as_json:
        print(json.dumps(report))
        return
    say_remarks(report.get("remarks", []))
    gigabytes = (report["bytes_read"] + report["bytes_written"]) / 1e9
    rate = gigabytes / report["seconds"]
    say(f"{out}: {parsed.method}, {gigabytes:.2f} GB in {report['seconds']:.1f} s ({rate:.1f} GB/s)")
    if "layers" in report:
        _say_conflicts(report["layers"])
    if "survived_rounding" in report:
        say_survival(report)


def _merge_recipe(
    recipe: Path | None,
    method: str | None,
    base: Path | None,
    models: list[str],
    minus: Path | None,
    parameters: list[str],
    dtype: str | None,
    allow: list[str],
) -> MergeRecipe:
    from skillgraft.arithmetic.merge_recipe import load_merge_data, parse_merge_recipe

    if recipe is not None:
        if method or base or models or minus:
            raise RecipeError(
                "a recipe file and --method, --base, --model or --minus were given; expected one of the two forms"
            )
        data, folder = load_merge_data(recipe), recipe.resolve().parent
    elif method and base and models:
        operands = [_operand(model, minus) for model in models]
        data, folder = {"method": method, "base": str(base), "operands": operands}, Path()
    else:
        raise RecipeError(
            "no merge was described; expected a recipe file, or --method, --base and --model, "
            "as in: skillgraft merge --method ties --base base --model one --model two=0.5 -o merged"
        )
    own_parameters = data.get("parameters") or {}
    if parameters and isinstance(own_parameters, dict):  # anything else is refused with the rest of the recipe
        data["parameters"] = own_parameters | dict(named_value(text) for text in parameters)
    if dtype:
        data["dtype"] = dtype
    own_allow = data.get("allow") or []
    if allow and isinstance(own_allow, list):
        data["allow"] = own_allow + allow
    return parse_merge_recipe(data, str(recipe or "merge"), folder)


def _operand(text: str, minus: Path | None) -> dict[str, Any]:
    from skillgraft.adapters.peft_file import is_adapter
    from skillgraft.skills.library import Resolved, find_skill
    from skillgraft.skills.skill import is_skill

    directory, weight = weighted("--model", text)
    path, remark = find_skill(directory) or Resolved(Path(directory))
    kind = "skill" if is_skill(path) else "adapter" if is_adapter(path) else "model"
    if remark and kind != "skill":  # of a skill the plan says it
        say(f"remark: {remark}", err_console)
    difference = {"minus": str(minus)} if minus is not None and kind == "model" else {}
    return {kind: str(path), **difference, **({} if weight == 1 else {"weight": weight})}


def _show_merge_plan(recipe: MergeRecipe, as_json: bool) -> None:
    from skillgraft.arithmetic.merging import estimate
    from skillgraft.arithmetic.plan import plan_merge

    plan = plan_merge(recipe)
    cost = estimate(plan)
    if as_json:
        print(json.dumps({"settings": plan.settings, "inputs": plan.inputs, "remarks": plan.remarks, **cost}))
        return
    say_remarks(plan.remarks)
    say(f"{recipe.method}: {cost['changed']} of {cost['tensors']} tensors change")
    say(f"reads {cost['bytes_read'] / 1e9:.2f} GB, writes {cost['bytes_written'] / 1e9:.2f} GB")
    say(f"about {cost['seconds']:.0f} s and {cost['memory_bytes'] / 1e6:.0f} MB of memory; nothing was written")


def _say_conflicts(layers: list[dict[str, Any]]) -> None:
    calm = [layer for layer in layers if layer["calm"]]
    say(f"{len(calm)} of {len(layers)} layers are calm and were averaged; the most conflicting:")
    for layer in sorted(layers, key=lambda layer: -layer["conflict"])[:3]:
        say(f"  {layer['layer']}: {layer['conflict']:.1%} of the elements that both change have opposite signs")
