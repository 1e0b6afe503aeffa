"""`skillgraft skill ls`, `add`, `remove`, `push` and `pull`: the local library, and sharing on a hub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skillgraft.cli.completion import complete_library
from skillgraft.cli.console import print_table, say
from skillgraft.cli.options import JsonOption, SkillArgument
from skillgraft.errors import RecipeError
from skillgraft.support.escape import escape_line

if TYPE_CHECKING:
    from skillgraft.skills.library import Entry

NameArgument = Annotated[
    str | None, typer.Argument(help="Name in the library; default: the directory's or repository's.")
]
RepositoryArgument = Annotated[str, typer.Argument(metavar="USER/REPO", help="Model repository on the hub.")]


def ls(
    base: Annotated[
        str | None, typer.Option(help="Only skills of this base: fingerprint, id, or a checkpoint's directory.")
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Only skills whose domain contains this.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the local library's skills with base, domain, size and scores; damaged ones with what is wrong."""
    from skillgraft.skills.library import library_home, list_skills

    entries = list_skills(base, domain)
    if as_json:
        print(json.dumps([_row(entry) for entry in entries]))
        return
    if not entries:
        filters = base is not None or domain is not None
        what = "no skill that fits this" if filters else "no skills yet; add one: skillgraft skill add SKILL"
        say(f"{library_home()} holds {what}")
        return
    usable = [entry for entry in entries if entry.manifest is not None]
    if usable:
        print_table(("name", "base", "domain", "size", "form", "scores"), (_cells(entry) for entry in usable))
    for entry in entries:
        if entry.problem:
            say(f"damaged: {escape_line(entry.name)}: {escape_line(entry.problem, 4_000)}")


def add(skill: SkillArgument, name: NameArgument = None, as_json: JsonOption = False) -> None:
    """Add a skill to the local library under a name that every verb takes; its card is written anew."""
    from skillgraft.skills.library import add_skill

    _added(add_skill(skill, name), as_json)


def remove(
    name: Annotated[
        str, typer.Argument(help="Name in the library.", show_default=False, autocompletion=complete_library)
    ],
    as_json: JsonOption = False,
) -> None:
    """Remove a skill from the local library."""
    from skillgraft.skills.library import remove_skill

    path = remove_skill(name)
    if as_json:
        print(json.dumps({"removed": str(path)}))
    else:
        say(f"removed {path}")


def push(
    skill: SkillArgument,
    repository: RepositoryArgument,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Push a skill to a model hub (HF_ENDPOINT) with the token of HF_TOKEN or of `hf auth login`.

    Its card is written anew from the manifest.
    """
    from skillgraft.cli.skill.artifact import open_skill
    from skillgraft.skills.hub import push_skill
    from skillgraft.skills.skill import Skill

    opened = open_skill(skill)
    if not isinstance(opened, Skill):
        raise RecipeError(f"{opened.path} is a PEFT adapter; expected a skill")
    pushed = push_skill(opened.path, repository, private=private)
    if as_json:
        print(json.dumps(pushed))
    else:
        say(f"{pushed['url']}: commit {pushed['revision']}")


def pull(
    repository: RepositoryArgument,
    name: NameArgument = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; default: main.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Pull a skill from a model hub into the local library: manifest and tensors only, checked before they appear."""
    from skillgraft.skills.hub import pull_skill

    _added(pull_skill(repository, name, revision=revision), as_json)


def _added(entry: Entry, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_row(entry)))
    else:
        commit = f", commit {entry.origin['revision']}" if entry.origin else ""
        say(f"{entry.name}: {entry.path}{commit}")


def _row(entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "path": str(entry.path), "problem": entry.problem}
    if entry.manifest is None:
        return row
    manifest = entry.manifest
    return row | {
        "base": manifest.base.model_dump() if manifest.base_is_known else None,
        "domain": manifest.domain,
        "license": manifest.license,
        "form": entry.form,
        "bytes": entry.size_bytes,
        "fingerprint": entry.fingerprint,
        "scores": manifest.scores,
        "origin": entry.origin,
    }


def _cells(entry: Entry) -> tuple[str, ...]:
    row = _row(entry)
    base = row["base"]
    named = (base["id"] or base["fingerprint"][:19]) if base else "by its weights"
    size = f"{entry.size_bytes / 1e6:.1f} MB"
    return entry.name, named, row["domain"] or "not stated", size, row["form"], _best(row["scores"])


def _best(scores: list[dict[str, Any]]) -> str:
    """Return the scores of the first model with the skill, in short, or how many rows there are."""
    grafted = next((row for row in scores if "skill" in str(row.get("model", "")).lower()), None)
    if grafted is None:
        return f"rows of scores: {len(scores)}" if scores else "none"
    hidden = ("model", "λ", "data", "recipe", "questions")
    return "; ".join(f"{key} {value}" for key, value in grafted.items() if key not in hidden)
