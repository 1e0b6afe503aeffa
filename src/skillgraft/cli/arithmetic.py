"""The verbs of the arithmetic engine on the command line: extract, inject, merge, verify, export."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillgraft.cli.completion import complete_methods, complete_recipes, complete_skills
from skillgraft.cli.console import err_console, out_console
from skillgraft.errors import OutputExistsError, RecipeError
from skillgraft.support.output import print_or_write
from skillgraft.support.progress import NO_METRICS, Progress

if TYPE_CHECKING:
    from skillgraft.arithmetic.merge_schema import MergeRecipe

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


def extract(
    rl: Annotated[Path, typer.Option(help="Checkpoint after RL, or a PEFT adapter trained on the SFT model.")],
    sft: Annotated[Path, typer.Option(help="The SFT checkpoint that RL started from.")],
    out: OutOption,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 for half the size.")] = "float32",
    domain: Annotated[str | None, typer.Option(help="What the skill was learnt on, for its manifest.")] = None,
    licence: Annotated[str | None, typer.Option(help="SPDX identifier for the manifest.")] = None,
    language: Annotated[str | None, typer.Option(help="ISO 639 code of the domain's texts, such as en.")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take the skill vector v = RL - SFT out of two checkpoints; exactly low-rank where RL ran with LoRA."""
    from skillgraft import arithmetic

    with _progress("extracting", as_json, unit="elements") as progress:
        skill = arithmetic.extract(
            rl,
            sft,
            out,
            dtype=dtype,
            domain=domain,
            licence=licence,
            language=language,
            threads=threads,
            progress=progress,
        )
    norm = sum(skill.norm(name) ** 2 for name in skill.names) ** 0.5
    facts = {"skill": str(out), "form": skill.form, "tensors": len(skill.names), "norm": norm}
    if as_json:
        print(json.dumps(facts))
    else:
        _say(f"{out}: {skill.form}, {len(skill.names)} tensors, norm {norm:.4g}")


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
        typer.Option(metavar="λ,λ,…", help="Several λ in one go: read once, write OUT/scale-λ for each."),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="What makes one v of several skills: task_arithmetic, their sum, or ties, dare_ties, …",
            autocompletion=complete_methods,
        ),
    ] = "task_arithmetic",
    parameter: ParameterOption = [],  # noqa: B006 - Typer copies it
    original: Annotated[
        Path | None,
        typer.Option(help="To take a skill out exactly: the checkpoint from before, if it is no longer where it was."),
    ] = None,
    dtype: DtypeOption = None,
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="Inject although the target comes from another base.")
    ] = False,
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Write target + scale · skills as a new checkpoint that keeps the target's config and tokenizer."""
    if scale is not None and scales is not None:
        raise RecipeError(f"--scale {scale:g} and --scales {scales} were given; expected one of them")
    if original is not None and scales is not None:
        raise RecipeError("--original and --scales were given; expected --original with one --scale")
    numbers = None if scales is None else _numbers(scales)
    skills = [weighted("--skill", text) for text in skill]
    from skillgraft import arithmetic

    options: dict[str, Any] = {
        "method": method,
        "parameters": dict(_pair(text) for text in parameter),
        "dtype": dtype,
        "allow_other_base": allow_other_base,
        "threads": threads,
        "device": device,
    }
    with _progress("injecting", as_json) as progress:
        if numbers is None:
            one = 1.0 if scale is None else scale
            report = arithmetic.inject(target, skills, out, scale=one, original=original, progress=progress, **options)
            reports = {str(out): report}
        else:
            made = arithmetic.inject_scales(target, skills, out, numbers, progress=progress, **options)
            reports = {str(out / name): report for name, report in made.items()}
    if as_json:
        print(json.dumps(reports if numbers is not None else reports[str(out)]))
        return
    _remarks(next(iter(reports.values())))
    for path, report in reports.items():
        _say(f"{path}: λ = {report['scale']:g}")
        if "removal" in report:
            _removal(report["removal"])
        else:
            _survival(report)


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
    allow: Annotated[
        list[str], typer.Option(help="Go on although: base, missing, tokenizer or architecture differ.")
    ] = [],  # noqa: B006
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
    """Merge checkpoints, skills and adapters by a recipe or by flags; killed, it goes on where it stopped."""
    parsed = _merge_recipe(recipe, method, base, model, minus, parameter, dtype, allow)
    if out is not None and os.path.lexists(out):  # at once: the plan reads every input for its fingerprint
        raise OutputExistsError(f"{out} exists already and nothing is overwritten; choose another output or delete it")
    if dry_run:
        _show_merge_plan(parsed, as_json)
        return
    if out is None:
        raise RecipeError("--out is missing; expected the directory to write, as in -o merged")
    from skillgraft import arithmetic

    with _progress("merging", as_json) as progress:
        report = arithmetic.merge(parsed, out, threads=threads, device=device, durable=durable, progress=progress)
    if as_json:
        print(json.dumps(report))
        return
    _remarks(report)
    moved = (report["bytes_read"] + report["bytes_written"]) / 1e9
    rate = moved / report["seconds"]
    _say(f"{out}: {parsed.method}, {moved:.2f} GB in {report['seconds']:.1f} s ({rate:.1f} GB/s)")
    if "layers" in report:
        _conflicts(report["layers"])
    if "survived_rounding" in report:
        _survival(report)


def verify(
    directory: Annotated[Path, typer.Argument(help="Checkpoint directory.", show_default=False)],
    values: Annotated[bool, typer.Option("--values", help="Read every number too, for NaN and infinity.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a checkpoint: headers, index, shards, ties, tokenizer, dtype, provenance; exit code 1 for an error."""
    from skillgraft.checkpoint.verify import verify_checkpoint

    with _progress("reading", as_json or not values) as progress:
        found = verify_checkpoint(directory, values=values, progress=progress)
    if as_json:
        print(json.dumps(found.as_dict()))
    else:
        for finding in found.findings:
            colour = {"error": "red", "warning": "yellow"}.get(finding.severity, "cyan")
            out_console.print(f"[{colour}]{finding.severity}[/] ", end="")
            _say(finding.message)
        _say(found.summary)
    if not found.ok:
        raise typer.Exit(1)


def export(
    recipe: Annotated[
        Path, typer.Argument(help="Merge recipe (YAML).", show_default=False, autocompletion=complete_recipes)
    ],
    mergekit: Annotated[bool, typer.Option("--mergekit", help="Write the equivalent mergekit configuration.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="File to write; default: standard output.", show_default=False)
    ] = None,
) -> None:
    """Write a merge recipe in another tool's form, or say why there is no equivalent."""
    from skillgraft.arithmetic.merge_recipe import load_merge_recipe
    from skillgraft.arithmetic.mergekit import mergekit_yaml

    if not mergekit:
        raise RecipeError("no form was named; expected --mergekit")
    print_or_write(mergekit_yaml(load_merge_recipe(recipe)), out)


VERBS: list[tuple[str, Callable[..., None], str]] = [
    ("extract", extract, "skillgraft extract --rl my-rl-checkpoint --sft my-sft-checkpoint -o my-skill"),
    ("inject", inject, "skillgraft inject --target my-sft --skill skills/squad-recall --skill mine=0.5 -o grafted"),
    ("merge", merge, "skillgraft merge --method ties --base base --model one --model two=0.5 -o merged"),
    ("verify", verify, "skillgraft verify merged --values"),
    ("export", export, "skillgraft export recipe.yaml --mergekit -o mergekit.yaml"),
]


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
        data, folder = (
            {"method": method, "base": str(base), "operands": [_operand(model, minus) for model in models]},
            Path(),
        )
    else:
        raise RecipeError(
            "no merge was described; expected a recipe file, or --method, --base and --model, "
            "as in: skillgraft merge --method ties --base base --model one --model two=0.5 -o merged"
        )
    stated = data.get("parameters") or {}
    if parameters and isinstance(stated, dict):  # anything else is refused with the rest of the recipe
        data["parameters"] = stated | dict(_pair(text) for text in parameters)
    if dtype:
        data["dtype"] = dtype
    stated = data.get("allow") or []
    if allow and isinstance(stated, list):
        data["allow"] = stated + allow
    return parse_merge_recipe(data, str(recipe or "merge"), folder)


def _operand(text: str, minus: Path | None) -> dict[str, Any]:
    from skillgraft.adapters.peft_file import is_adapter
    from skillgraft.skills.library import Resolved, find_skill
    from skillgraft.skills.skill import is_skill

    directory, weight = weighted("--model", text)
    path, remark = find_skill(directory) or Resolved(Path(directory))
    kind = "skill" if is_skill(path) else "adapter" if is_adapter(path) else "model"
    if remark and kind != "skill":  # of a skill the plan says it
        err_console.print(f"remark: {remark}", soft_wrap=True, highlight=False, markup=False)
    difference = {"minus": str(minus)} if minus is not None and kind == "model" else {}
    return {kind: str(path), **difference, **({} if weight == 1 else {"weight": weight})}


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


def _pair(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not name or not equals:
        raise RecipeError(f"--parameter {text}: expected NAME=VALUE, such as density=0.2")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"--parameter {text}: {value!r} is no YAML value; expected one such as 0.2") from error


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"--scales {text}: expected numbers such as 0,0.25,0.5,1") from error


def _show_merge_plan(recipe: MergeRecipe, as_json: bool) -> None:
    from skillgraft.arithmetic.merging import estimate
    from skillgraft.arithmetic.plan import plan_merge

    plan = plan_merge(recipe)
    cost = estimate(plan)
    if as_json:
        print(json.dumps({"settings": plan.settings, "inputs": plan.inputs, "remarks": plan.remarks, **cost}))
        return
    _remarks({"remarks": plan.remarks})
    _say(f"{recipe.method}: {cost['changed']} of {cost['tensors']} tensors change")
    _say(f"reads {cost['bytes_read'] / 1e9:.2f} GB, writes {cost['bytes_written'] / 1e9:.2f} GB")
    _say(f"about {cost['seconds']:.0f} s and {cost['memory_bytes'] / 1e6:.0f} MB of memory; nothing was written")


def _remarks(report: dict[str, Any]) -> None:
    for remark in report.get("remarks", []):
        out_console.print("[yellow]remark[/] ", end="")
        _say(remark)


def _survival(report: dict[str, Any]) -> None:
    worst = report.get("worst")
    where = f" (worst tensor {worst['name']}: {_percent(worst['survived_rounding'])})" if worst else ""
    _say(f"skill survived rounding: {_percent(report['survived_rounding'])}{where}")
    if report["survived_rounding"] < 0.9:
        _say("more of it survives with --dtype float32")


def _conflicts(layers: list[dict[str, Any]]) -> None:
    calm = [layer for layer in layers if layer["calm"]]
    _say(f"{len(calm)} of {len(layers)} layers are calm and were averaged; the most conflicting:")
    for layer in sorted(layers, key=lambda layer: -layer["conflict"])[:3]:
        _say(f"  {layer['layer']}: {layer['conflict']:.1%} of the elements that both change have opposite signs")


def _removal(removal: dict[str, Any]) -> None:
    if removal["exact"]:
        _say(f"taken out, exact: the original's own bytes ({removal['original']})")
    elif removal["bound"] is None:
        _say("taken out of a checkpoint that is not surely what was injected: how far off it is, is not known")
    else:
        most = f"; at most {removal['elements']:,} numbers are off" if "elements" in removal else ""
        _say(f"taken out, within {removal['relative']:.1e} relative ({removal['rounding']}){most}")


def _percent(share: float) -> str:
    return f"{share if abs(share) >= 5e-4 else 0.0:.1%}"  # no -0.0% where sums of squares differ in their last digit


def _say(text: str) -> None:
    from skillgraft.support.escape import visible  # what a manifest says may be in the text

    out_console.print(visible(text, 20_000), soft_wrap=True, highlight=False, markup=False)


@contextmanager
def _progress(what: str, silent: bool, unit: str = "bytes") -> Iterator[Progress | None]:
    """Yield a callback that draws a bar with the rate on a terminal; None where nobody watches."""
    if silent or not err_console.is_terminal:
        yield None
        return
    from rich import progress as bars

    rate = (bars.DownloadColumn(), bars.TransferSpeedColumn()) if unit == "bytes" else ()
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), *rate, bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=err_console, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def show(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, /) -> None:
            if total:
                bar.update(task, completed=done, total=total)

        yield show
