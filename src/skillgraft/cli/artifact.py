"""The verbs on one skill: look at it, check that it fits, convert it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillgraft.cli.arithmetic import JsonOption, OutOption, _progress, _say
from skillgraft.cli.completion import complete_skills
from skillgraft.cli.console import err_console, out_console
from skillgraft.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from skillgraft.adapters.peft_file import PeftAdapter
    from skillgraft.skills.skill import Skill

SkillArgument = Annotated[
    str,
    typer.Argument(
        metavar="SKILL",
        help="Skill directory or name in the library.",
        show_default=False,
        autocompletion=complete_skills,
    ),
]
FORMATS = ("peft",)


def show(
    skill: Annotated[
        str,
        typer.Argument(
            metavar="SKILL",
            help="Skill directory, name in the library, or PEFT adapter.",
            show_default=False,
            autocompletion=complete_skills,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what a skill is: where from, what it fits, its size and form, norms by kind of module, scores, licence."""
    from skillgraft.skills.skill import Skill
    from skillgraft.skills.summary import adapter_facts, skill_facts

    found = open_skill(skill)
    facts = skill_facts(found) if isinstance(found, Skill) else adapter_facts(found)
    if as_json:
        print(json.dumps(facts))
        return
    if isinstance(found, Skill):
        _show_skill(found, facts)
    else:
        _show_adapter(facts)


def check(
    target: Annotated[Path, typer.Argument(help="Checkpoint that is to receive the skill.", show_default=False)],
    skill: Annotated[
        str,
        typer.Argument(
            metavar="SKILL",
            help="Skill directory, name in the library, or PEFT adapter.",
            show_default=False,
            autocompletion=complete_skills,
        ),
    ],
    allow_other_base: Annotated[
        bool, typer.Option("--allow-other-base", help="A target from another base is a remark, not a refusal.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether a skill fits a target, with every reason: fits, fits with remarks (exit code 0), or refused (1).

    It looks as inject and merge do before any arithmetic: tensors and shapes, vocabulary, ties, head counts and RoPE,
    token map, base; and whether every number of the skill is finite. For a target in bfloat16 or float16 it estimates
    what rounding would cost.
    """
    from skillgraft.checkpoint.layout import read_layout
    from skillgraft.skills.compatibility import adapter_findings, skill_findings, verdict
    from skillgraft.skills.skill import Skill

    if _is_skill(target) and Path(skill).is_dir() and not _is_skill(skill):
        raise RecipeError(
            f"{target} is a skill, expected the checkpoint that is to receive it, and then the skill: "
            f"skillgraft check {skill} {target}"
        )
    layout = read_layout(target)
    found = open_skill(skill)
    if isinstance(found, Skill):
        from skillgraft.skills.contents import contents_finding

        findings = skill_findings(layout, found, allow_other_base)
        findings += [item for item in (contents_finding(found),) if item is not None]
        if verdict(findings) != "refused":
            from skillgraft.skills.rounding import rounding_finding

            findings += [item for item in (rounding_finding(layout, found),) if item is not None]
    else:
        findings = adapter_findings(layout, found)
    said = verdict(findings)
    if as_json:
        rows = [{"level": f.level, "about": f.about, "message": f.message} for f in findings]
        print(json.dumps({"verdict": said, "target": str(target), "skill": str(found.path), "findings": rows}))
    else:
        _say(said)
        for finding in findings:
            colour = {"refused": "red", "remark": "yellow"}.get(finding.level, "green")
            out_console.print(f"  [{colour}]{finding.about}[/] ", end="")
            _say(finding.message)
    if said == "refused":
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
    """Write a skill as a PEFT LoRA adapter: exact where it is low rank and on linear modules, else refused or bounded.

    vLLM reads one rank and one scaling from an adapter; here the scaling is 1 for every module, and it serves the
    adapter with --max-lora-rank of at least the largest rank: one of 1, 8, 16, 32, 64, 128, 256, 320, 512.
    The other way round, a PEFT adapter becomes a skill with: skillgraft extract --rl ADAPTER --sft SFT -o SKILL
    """
    if to not in FORMATS:
        if to == "skill":
            raise RecipeError("--to skill: an adapter becomes a skill with skillgraft extract --rl ADAPTER --sft SFT")
        if to == "mergekit":
            raise RecipeError(
                "--to mergekit: mergekit takes checkpoints and LoRA adapters; convert --to peft, name the adapter in a "
                "merge recipe, and then: skillgraft export RECIPE --mergekit"
            )
        raise RecipeError(f"--to {to!r} is unknown{did_you_mean(to, FORMATS)}")
    from skillgraft.adapters.peft_file import PeftAdapter
    from skillgraft.skills.to_peft import convert_to_peft

    found = open_skill(skill)
    if isinstance(found, PeftAdapter):
        raise RecipeError(f"{found.path} is a PEFT adapter already; expected a skill")
    with _progress("converting", as_json, unit="tensors") as progress:
        report = convert_to_peft(
            found, out, scale=scale, rank=rank, drop=drop, pad=pad, base_model=base_model, progress=progress
        )
    if as_json:
        print(json.dumps({"adapter": str(out), **report}))
        return
    exact = "exact" if report["exact"] else f"relative error {report['error']:.3g}"
    _say(f"{out}: {report['modules']} modules, rank {report['rank']}, λ = {report['scale']:g}, {exact}")
    if not report["exact"]:
        parts = (f"{kind} {error:.3g}" for kind, error in report["error_by_kind"].items())
        _say(f"error by kind of module: {', '.join(parts)}")
    for remark in report["remarks"]:
        out_console.print("[yellow]remark[/] ", end="")
        _say(remark)


def open_skill(text: str) -> Skill | PeftAdapter:
    """Return the skill or adapter that `text` names: a directory, else a name in the library."""
    from skillgraft.adapters.peft_file import is_adapter, read_adapter
    from skillgraft.skills.library import resolve_skill
    from skillgraft.skills.skill import load_skill

    path, remark = resolve_skill(text)
    if remark:
        err_console.print(f"remark: {remark}", soft_wrap=True, highlight=False, markup=False)
    return read_adapter(path) if is_adapter(path) else load_skill(path)


def _is_skill(text: str | Path) -> bool:
    """Return whether `text` names a skill or an adapter: a directory with its files, or a name."""
    from skillgraft.adapters.peft_file import is_adapter
    from skillgraft.skills.library import find_skill
    from skillgraft.skills.manifest import MANIFEST_FILE

    found = find_skill(text)
    return found is not None and ((found.path / MANIFEST_FILE).is_file() or is_adapter(found.path))


VERBS: list[tuple[str, Callable[..., None], str]] = [
    ("show", show, "skillgraft show skills/squad-recall"),
    ("check", check, "skillgraft check my-sft skills/squad-recall"),
    ("convert", convert, "skillgraft convert skills/squad-recall --to peft -o my-adapter"),
]


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
        "licence": facts["licence"],
        "language": facts["language"],
        "made": f"{facts['created']} with Skillgraft {facts['skillgraft_version']}",
        "fingerprint": facts["fingerprint"],
    }
    _pairs(rows)
    _table(
        ("modules", "tensors", "parameters", "norm", "share"),
        (
            (row["kind"], str(row["tensors"]), f"{row['parameters']:,}", f"{row['norm']:.4g}", f"{row['share']:.1%}")
            for row in facts["modules"]
        ),
    )
    if facts["scores"]:
        columns = tuple(dict.fromkeys(key for row in facts["scores"] for key in row))
        _table(columns, (tuple(str(row.get(key, "")) for key in columns) for row in facts["scores"]))


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
    _table(("modules", "tensors"), ((row["kind"], str(row["tensors"])) for row in facts["modules"]))


def _pairs(rows: dict[str, Any]) -> None:
    for key, value in rows.items():
        _say(f"{key:<22}{_visible('not stated' if value is None else str(value))}")


def _table(head: Iterable[str], rows: Iterable[tuple[str, ...]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for column in head:
        table.add_column(Text(_visible(column)))
    for row in rows:
        table.add_row(*(Text(_visible(cell)) for cell in row))
    out_console.print(table)


def _visible(text: str) -> str:
    """Return untrusted text for the terminal: one line, without control or bidirectional characters."""
    from skillgraft.support.escape import visible_line

    return visible_line(text, 4_000)
