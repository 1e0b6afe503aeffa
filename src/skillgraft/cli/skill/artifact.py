"""`skillgraft skill show`, `check` and `convert`: what one skill is, what it fits, and its LoRA form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillgraft.cli.console import err_console, print_table, progress_bar, say, say_remarks
from skillgraft.cli.options import JsonOption, OutOption, SkillArgument, SkillOrAdapterArgument
from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.support.escape import escape_line

if TYPE_CHECKING:
    from skillgraft.adapters.peft_file import PeftAdapter
    from skillgraft.skills.skill import Skill

FORMATS = ("peft",)


def show(
    skill: SkillOrAdapterArgument,
    as_json: JsonOption = False,
) -> None:
    """Show what a skill is: where from, what it fits, its size and form, norms by kind of module, scores, license."""
    from skillgraft.skills.skill import Skill
    from skillgraft.skills.summary import adapter_facts, skill_facts

    opened = open_skill(skill)
    facts = skill_facts(opened) if isinstance(opened, Skill) else adapter_facts(opened)
    if as_json:
        print(json.dumps(facts))
        return
    if isinstance(opened, Skill):
        _show_skill(opened, facts)
    else:
        _show_adapter(facts)


def check(
    target: Annotated[Path, typer.Argument(help="Checkpoint that is to receive the skill.", show_default=False)],
    skill: SkillOrAdapterArgument,
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="A target from another base is a remark, not a refusal.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check whether a skill fits a target, with every reason: fits, fits with remarks (exit code 0), or refused (1).

    The checks are those that inject and merge make before any arithmetic: tensors and shapes, vocabulary, ties, head
    counts and RoPE, token map, base; and whether every number of the skill is finite. For a target in bfloat16 or
    float16 the cost of rounding is estimated.
    """
    from skillgraft.adapters import read_adapter
    from skillgraft.checkpoint.layout import read_layout
    from skillgraft.skills.compatibility import adapter_findings, skill_findings, verdict
    from skillgraft.skills.skill import Skill

    if _is_skill(target) and Path(skill).is_dir() and not _is_skill(skill):
        raise RecipeError(
            f"{target} is a skill, expected the checkpoint that is to receive it, and then the skill: "
            f"skillgraft skill check {skill} {target}"
        )
    layout = read_layout(target)
    opened = open_skill(skill)
    if isinstance(opened, Skill):
        from skillgraft.skills.contents import contents_finding

        findings = skill_findings(layout, opened, allow_other_base)
        findings += [item for item in (contents_finding(opened),) if item is not None]
        if verdict(findings) != "refused":
            from skillgraft.skills.rounding import rounding_finding

            findings += [item for item in (rounding_finding(layout, opened),) if item is not None]
    else:
        findings = adapter_findings(layout, read_adapter(opened.path, layout))
    whole = verdict(findings)
    if as_json:
        rows = [{"level": f.level, "about": f.about, "message": f.message} for f in findings]
        print(json.dumps({"verdict": whole, "target": str(target), "skill": str(opened.path), "findings": rows}))
    else:
        say(whole)
        for finding in findings:
            colour = {"refused": "red", "remark": "yellow"}.get(finding.level, "green")
            say(finding.message, heading=f"  [{colour}]{finding.about}[/] ")
    if whole == "refused":
        raise typer.Exit(1)


def convert(
    skill: SkillArgument,
    to: Annotated[str, typer.Option("--to", help="peft: a LoRA adapter for PEFT, Transformers and vLLM.")],
    out: OutOption,
    scale: Annotated[float, typer.Option(help="λ, multiplied into the adapter.")] = 1.0,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Bound every module's rank; full-rank deltas are approximated.")
    ] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Leave out what no LoRA holds: norms, embeddings.")] = False,
    pad: Annotated[bool, typer.Option("--pad", help="One rank for all modules, filled up with zeros.")] = False,
    base_model: Annotated[
        str | None, typer.Option(help="What the adapter names as its base model; default: the skill's base.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Convert a skill to a PEFT LoRA adapter: exact if low rank and on linear modules, else refused or bounded.

    vLLM reads one rank and one scaling from an adapter; here the scaling is 1 for every module. Serve the adapter with
    --max-lora-rank of at least its largest rank: one of 1, 8, 16, 32, 64, 128, 256, 320, 512.
    The reverse, a PEFT adapter to a skill: skillgraft extract --rl ADAPTER --sft SFT -o SKILL
    """
    if to not in FORMATS:
        if to == "skill":
            raise RecipeError("--to skill: an adapter becomes a skill with skillgraft extract --rl ADAPTER --sft SFT")
        if to == "mergekit":
            raise RecipeError(
                "--to mergekit: mergekit takes checkpoints and LoRA adapters; skillgraft skill convert "
                "--to peft, name the adapter in a merge recipe, and then: skillgraft export RECIPE --mergekit"
            )
        raise RecipeError(f"--to {to!r} is unknown{did_you_mean(to, FORMATS)}")
    from skillgraft.adapters.peft_file import PeftAdapter
    from skillgraft.skills.to_peft import convert_to_peft

    original = open_skill(skill)
    if isinstance(original, PeftAdapter):
        raise RecipeError(f"{original.path} is a PEFT adapter already; expected a skill")
    with progress_bar("converting", as_json, unit="tensors") as progress:
        report = convert_to_peft(
            original, out, scale=scale, rank=rank, drop=drop, pad=pad, base_model=base_model, progress=progress
        )
    if as_json:
        print(json.dumps({"adapter": str(out), **report}))
        return
    exact = "exact" if report["exact"] else f"relative error {report['error']:.3g}"
    say(f"{out}: {report['modules']} modules, rank {report['rank']}, λ = {report['scale']:g}, {exact}")
    if not report["exact"]:
        parts = (f"{kind} {error:.3g}" for kind, error in report["error_by_kind"].items())
        say(f"error by kind of module: {', '.join(parts)}")
    say_remarks(report["remarks"])


def open_skill(text: str) -> Skill | PeftAdapter:
    """Return the skill or adapter that `text` names: a directory, else a name in the library."""
    from skillgraft.adapters import read_adapter
    from skillgraft.adapters.peft_file import is_adapter
    from skillgraft.skills.library import resolve_skill
    from skillgraft.skills.skill import load_skill

    path, remark = resolve_skill(text)
    if remark:
        say(f"remark: {remark}", err_console)
    return read_adapter(path) if is_adapter(path) else load_skill(path)


def _is_skill(text: str | Path) -> bool:
    """Return whether `text` names a skill or an adapter: a directory with its files, or a name."""
    from skillgraft.adapters.peft_file import is_adapter
    from skillgraft.skills.library import find_skill
    from skillgraft.skills.manifest import MANIFEST_FILE

    resolved = find_skill(text)
    return resolved is not None and ((resolved.path / MANIFEST_FILE).is_file() or is_adapter(resolved.path))


def _show_skill(skill: Skill, facts: dict[str, Any]) -> None:
    from skillgraft.skills.card import error_rows

    base, architecture = facts["base"], facts["architecture"]
    forms = ", ".join(f"{count} {form}" for form, count in facts["forms"].items())
    rows = {
        "skill": facts["path"],
        "domain": facts["domain"],
        "formula": facts["formula"],
        "base": f"{base['id'] or 'without id'} ({base['fingerprint']})" if base else "recognised by its weights",
        "from SFT model": facts["sft"],
        "from RL model": facts["rl"],
        "fits": f"{architecture['model_type']}, hidden size {architecture['hidden_size']}, "
        f"{architecture['num_attention_heads']} heads, vocabulary {architecture['vocab_size']}",
        "tokenizer": facts["tokenizer"],
        "size": f"{facts['bytes'] / 1e6:.2f} MB for {facts['parameters']:,} parameters in {facts['tensors']} tensors",
        "form": forms,
        "norm": f"{facts['norm']:.6g}",
        **error_rows(skill.manifest),
        "recipe, seed": f"{facts['recipe'] or 'not stated'}, {'none' if facts['seed'] is None else facts['seed']}",
        "license": facts["license"],
        "language": facts["language"],
        "made": f"{facts['created']} with Skillgraft {facts['skillgraft_version']}",
        "fingerprint": facts["fingerprint"],
    }
    _pairs(rows)
    for remark in facts["remarks"]:
        say(f"remark: {remark}")
    print_table(
        ("modules", "tensors", "parameters", "norm", "share"),
        (
            (row["kind"], str(row["tensors"]), f"{row['parameters']:,}", f"{row['norm']:.4g}", f"{row['share']:.1%}")
            for row in facts["modules"]
        ),
    )
    if facts["scores"]:
        columns = tuple(dict.fromkeys(key for row in facts["scores"] for key in row))
        print_table(columns, (tuple(str(row.get(key, "")) for key in columns) for row in facts["scores"]))


def _show_adapter(facts: dict[str, Any]) -> None:
    ranks = ", ".join(f"{count} of rank {rank}" for rank, count in facts["ranks"].items())
    _pairs(
        {
            "PEFT adapter": facts["path"],
            "base": facts["base"],
            "size": f"{facts['bytes'] / 1e6:.2f} MB for {facts['parameters']:,} parameters",
            "tensors": f"{facts['tensors']}: {ranks}",
            "fingerprint": facts["fingerprint"],
        }
    )
    print_table(("modules", "tensors"), ((row["kind"], str(row["tensors"])) for row in facts["modules"]))


def _pairs(rows: dict[str, Any]) -> None:
    for key, value in rows.items():
        say(f"{key:<22}{escape_line('not stated' if value is None else str(value), 4_000)}")
