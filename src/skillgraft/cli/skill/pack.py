"""`skillgraft skill pack`: a skill in a smaller storage form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from skillgraft.cli.console import err_console, out_console, progress_bar, say, say_remarks
from skillgraft.cli.options import JsonOption, OutOption, SkillArgument
from skillgraft.cli.skill.artifact import open_skill
from skillgraft.errors import RecipeError


def pack(
    skill: SkillArgument,
    form: Annotated[str, typer.Option(help="dense, sparse (lossless), lowrank, packed or mask.", show_default=False)],
    out: OutOption,
    budget: Annotated[str | None, typer.Option(help="Size of the whole directory: 5MB.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of every matrix (packed: half of it in attention).")] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="Share of each matrix's squared norm: 0.9. With packed it decides the rank of MLP matrices; attention "
            "gets half of the rank that this takes, and embeddings and head keep --density."
        ),
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of the elements: 0.01, the default of packed (embeddings and head).")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of stored values or factors: float32, float16, bfloat16.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="JSONL: measure how much of the gain is kept on these, with --target.")
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="SFT checkpoint for --questions and --localise-on.", show_default=False)
    ] = None,
    localise_on: Annotated[
        Path | None, typer.Option(help="JSONL other than --questions: optimise the mask on these, with --target.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of --localise-on; default: 40.")] = None,
    scale: Annotated[
        float | None, typer.Option(help="λ with which the gain on --questions is measured; default: 1.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Pack a skill to less disk space: reports size and error by kind of module, and how much of its gain is kept."""
    if (questions is None and localise_on is None) != (target is None):
        raise RecipeError("--target belongs to --questions or --localise-on; expected both, or neither")
    if steps is not None and localise_on is None:
        raise RecipeError(f"--steps {steps} are those of --localise-on; expected both, or neither")
    if scale is not None and questions is None:
        raise RecipeError(f"--scale {scale} is for measuring on --questions; expected both, or neither")
    from skillgraft.compression.settings import PackSettings, parse_size

    size = parse_size(budget) if budget is not None else None
    PackSettings(form, size, rank, energy, density, dtype)
    from skillgraft import compression
    from skillgraft.compression import gain
    from skillgraft.skills.skill import Skill

    original = open_skill(skill)
    if not isinstance(original, Skill):
        raise RecipeError(
            f"{skill} is a PEFT adapter; expected a skill: skillgraft extract --rl {skill} --sft SFT -o SKILL"
        )
    directory = gain.check_gain_inputs(original, target, questions, localise_on) if target and questions else None
    with progress_bar("packing", as_json, unit="elements") as progress:
        settings: dict[str, Any] = {"budget": size, "rank": rank, "energy": energy, "density": density, "dtype": dtype}
        if localise_on is not None:
            settings |= {"localise_on": localise_on, "target": target, "steps": steps}
        packed = compression.pack(original, out, form, progress=progress, **settings)
    gains: dict[str, Any] = {}
    remarks = []
    if directory is not None and questions is not None:
        gains["gain"] = gain.kept_gain(
            original, packed, directory, questions, scale=1.0 if scale is None else scale, say=err_console.print
        )
        if not compression.record_scores(packed, gain.score_rows(gains["gain"]), size):
            remarks.append(f"{out}: the scores are not in the manifest, for which --budget {budget} leaves no room")
    facts = compression.describe(packed, original) | gains
    facts["remarks"] += remarks
    if as_json:
        print(json.dumps(facts))
        return
    _show(out, facts)


def _show(out: Path, facts: dict[str, Any]) -> None:
    say(
        f"{out}: {facts['form']}, {facts['tensors']} tensors, {facts['size_bytes'] / 1e6:.3g} MB "
        f"({_size(facts['ratio'])} than it was, {_size(facts['dense_ratio'])} than dense float32)"
    )
    table = Table("kind of module", "reconstruction error")
    for kind, error in [*facts["errors"].items(), ("whole", facts["packing_error"])]:
        table.add_row(kind, f"{error:.3g}")
    out_console.print(table)
    if facts["source_reconstruction_error"]:
        bound = "at most " if facts["reconstruction_error_is_bound"] else ""
        say(
            f"with the {facts['source_reconstruction_error']:.3g} that it had lost before: "
            f"{bound}{facts['reconstruction_error']:.3g}"
        )
    say_remarks(facts["remarks"])
    if "gain" not in facts:
        return
    from skillgraft.compression.gain import share_text

    gain = facts["gain"]
    table = Table("metric", "target", "+ original", "+ packed", "gain kept", title=f"{gain['questions']} questions")
    for metric, share in gain["kept"].items():
        means = [f"{gain['scores'][label][metric]['mean']:.3f}" for label in ("target", "original", "packed")]
        table.add_row(metric, *means, share_text(share))
    out_console.print(table)


def _size(ratio: float) -> str:
    """Return how many times smaller, or larger, something is."""
    return f"{ratio:.3g}x smaller" if ratio >= 1 else f"{1 / ratio:.3g}x larger"
