"""The cards of a skill and of an adapter made of one: `README.md` with front matter that model hubs read.

All text of a manifest is untrusted: it is put on one line, with control and bidirectional characters made
visible and everything escaped that Markdown or HTML would read as more than text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from skillgraft.skills.manifest import SKILL_FORMULA, Manifest
from skillgraft.skills.modules import kind_rows
from skillgraft.support.escape import escape_line

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:+-]{0,127}")
_HUB_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{1,31}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z]{2,8})?")
_MARKDOWN = re.compile(r"([\\`*{}\[\]|~#^$!]|_(?![^\W_])|(?<![^\W_])_)")  # an underscore within a word is one
_MARKS = re.compile("[\u061c\u200b\u200e\u200f]")


def card_text(manifest: Manifest) -> str:
    """Return the README of a skill: front matter, facts, use, norms by kind of module, scores and limits."""
    is_skill = manifest.formula == SKILL_FORMULA
    what = (
        "A skill vector: what reinforcement learning changed in a model's weights, kept as a difference that can be\n"
        "added to another fine-tune of the same base (Parametric Skill Transfer, arXiv 2601.11258)."
        if is_skill
        else "A control made from a skill: a difference of weights that has the skill's size and not its content."
    )
    lines = [
        _front_matter(manifest, library="skillgraft", tags=("skillgraft", "skill-vector", "task-arithmetic")),
        f"# {'Skill' if is_skill else 'Control'}: {escaped(manifest.domain or 'unnamed domain')}",
        "",
        what + " These are weights,\nnot a prompt file of the kind that is called an agent skill.",
        "",
        *_table(("", ""), _facts(manifest).items()),
        "## Use",
        "",
        "```sh",
        "skillgraft skill check YOUR-FINE-TUNE-OF-THE-BASE THIS-DIRECTORY",
        "skillgraft inject --target YOUR-FINE-TUNE-OF-THE-BASE --skill THIS-DIRECTORY --scale 1.0 -o grafted",
        "```",
        "",
        "## Modules",
        "",
        *_table(("kind", "tensors", "parameters", "Frobenius norm", "share of its square"), _module_rows(manifest)),
        *_score_lines(manifest),
        "## Limits",
        "",
        "It fits fine-tunes of its own base only, with the same tokenizer and shapes; `skillgraft skill check` tells.",
        "Scores are those of the models and data that they name and say nothing of others: measure on your target what",
        "the skill does there. A target in bfloat16 rounds a part of it away.",
        "",
    ]
    return "\n".join(lines)


def adapter_card_text(manifest: Manifest, report: Mapping[str, Any]) -> str:
    """Return the README of a PEFT adapter that was made of a skill, with what the conversion cost."""
    exact = "exact" if report["exact"] else f"{report['error']:.3g} (relative Frobenius)"
    facts = {
        "domain": escaped(manifest.domain or "not stated"),
        "scale (in the weights)": f"{report['scale']:g}",
        "modules": str(report["modules"]),
        "largest rank": str(report["rank"]),
        "difference to the skill": exact,
        "left out": f"{len(report['dropped'])} tensors",
        "RL model": code(manifest.rl.fingerprint),
        "SFT model": code(manifest.sft.fingerprint),
    }
    lines = [
        _front_matter(manifest, library="peft", tags=("lora", "skillgraft", "skill-vector")),
        f"# LoRA adapter of the skill: {escaped(manifest.domain or 'unnamed domain')}",
        "",
        "A skill vector (arXiv 2601.11258) as a LoRA adapter, converted with `skillgraft skill convert --to peft`.",
        "Use it on a fine-tune of the skill's base.",
        "",
        *_table(("", ""), facts.items()),
    ]
    return "\n".join(lines)


def error_rows(manifest: Manifest) -> dict[str, str]:
    """Return rows on the reconstruction error, of a packed skill also how and where; untrusted text, not escaped."""
    most = "at most " if manifest.error_is_bound else ""
    rows = {"reconstruction error": f"{most}{manifest.reconstruction_error:.3g} (relative Frobenius)"}
    if (packing := manifest.packing) is None:
        return rows
    settings = ", ".join(f"{key} {value}" for key, value in packing.settings.items())
    kinds = ", ".join(f"{kind} {error:.3g}" for kind, error in packing.errors.items())
    whole = "" if packing.error is None else f"{packing.error:.3g}: "
    return rows | {
        "packed": f"as {packing.form}{f' ({settings})' if settings else ''} from {packing.source}",
        "lost in packing": f"{whole}{kinds}",
        "lost before": f"{packing.source_reconstruction_error:.3g}",
    }


def escaped(text: object) -> str:
    """Return untrusted text for one place in Markdown: one line, harmful characters visible, markup escaped."""
    line = _MARKS.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", escape_line(str(text)))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", line)


def code(text: str) -> str:
    """Return a fingerprint as code, anything else as escaped text."""
    return f"`{text}`" if _PLAIN.fullmatch(text) else escaped(text)


def _facts(manifest: Manifest) -> dict[str, str]:
    forms = Counter(str(entry.form) for entry in manifest.tensors.values())
    base = escaped(manifest.base.id or "unknown id")
    if not manifest.base_is_known:
        base = "not recorded; recognised by its weights"
    return {
        "formula": escaped(manifest.formula),
        "domain": escaped(manifest.domain or "not stated"),
        "base": f"{base} ({code(manifest.base.fingerprint)})",
        "SFT model": code(manifest.sft.fingerprint),
        "RL model": code(manifest.rl.fingerprint),
        "tokenizer": code(manifest.tokenizer),
        "tensors": f"{len(manifest.tensors)} ({', '.join(f'{count} {form}' for form, count in forms.items())})",
        "Frobenius norm": f"{manifest.norm:.6g}",
        **{key: escaped(value) for key, value in error_rows(manifest).items()},
        "recipe": escaped(manifest.recipe or "not stated"),
        "seed": "not stated" if manifest.seed is None else str(manifest.seed),
        "license": escaped(manifest.license or "not stated"),
        "made": f"{escaped(manifest.created)} with Skillgraft {escaped(manifest.skillgraft_version)}",
    }


def _front_matter(manifest: Manifest, library: str, tags: tuple[str, ...]) -> str:
    """Return the YAML block; only values of the form that the hub expects go into it."""
    front: dict[str, object] = {"library_name": library, "pipeline_tag": "text-generation", "tags": list(tags)}
    if manifest.base.id and _REPOSITORY.fullmatch(manifest.base.id):
        front |= {"base_model": manifest.base.id, "base_model_relation": "adapter"}
    if manifest.license:
        hubs = manifest.license.lower()
        if _HUB_LICENSE.fullmatch(hubs):
            front["license"] = hubs
        else:
            front |= {"license": "other", "license_name": escape_line(manifest.license, 80)}
    if manifest.language and _LANGUAGE.fullmatch(manifest.language):
        front["language"] = manifest.language
    return f"---\n{yaml.safe_dump(front, sort_keys=True)}---\n"


def _module_rows(manifest: Manifest) -> list[tuple[str, ...]]:
    return [
        (row.kind, str(row.tensors), f"{row.parameters:,}", f"{row.norm:.4g}", f"{row.share:.1%}")
        for row in kind_rows(manifest.sizes)
    ]


def _score_lines(manifest: Manifest) -> list[str]:
    if not manifest.scores:
        return []
    columns = list(dict.fromkeys(key for row in manifest.scores for key in row))
    rows = [tuple(escaped(row.get(column, "")) for column in columns) for row in manifest.scores]
    return ["## Scores", "", *_table(tuple(map(escaped, columns)), rows)]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [" | ".join(row) for row in rows]
    return [_row(head), "|" + "---|" * len(head), *(f"| {line} |" for line in lines), ""]


def _row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |" if any(cells) else "|" + " |" * len(cells)
