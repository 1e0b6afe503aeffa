"""Summary of a skill or adapter for `skill show`, as facts for people and scripts."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from skillgraft.adapters.peft_file import PeftAdapter, adapter_base
from skillgraft.checkpoint.fingerprint import fingerprint_file
from skillgraft.skills.library import SKILL_FILES
from skillgraft.skills.modules import by_kind, kind_rows
from skillgraft.skills.skill import Skill


def skill_facts(skill: Skill) -> dict[str, Any]:
    """Return the manifest's facts in one level, with sizes, the norm and what each kind of module holds."""
    manifest = skill.manifest
    files = (skill.path / name for name in SKILL_FILES)
    return {
        "path": str(skill.path),
        "kind": "skill",
        "formula": manifest.formula,
        "domain": manifest.domain,
        "language": manifest.language,
        "license": manifest.license,
        "base": manifest.base.model_dump() if manifest.base_is_known else None,
        "sft": manifest.sft.fingerprint,
        "rl": manifest.rl.fingerprint,
        "tokenizer": manifest.tokenizer,
        "architecture": manifest.architecture.model_dump(),
        "recipe": manifest.recipe,
        "seed": manifest.seed,
        "created": manifest.created,
        "skillgraft_version": manifest.skillgraft_version,
        "versions": manifest.versions,
        "fingerprint": fingerprint_file(skill.weights_file),
        "bytes": sum(file.stat().st_size for file in files if file.is_file()),
        "parameters": sum(math.prod(skill.shape(name)) for name in skill.names),
        "tensors": len(skill.names),
        "forms": dict(Counter(str(skill.entry(name).form) for name in skill.names)),
        "norm": manifest.norm,
        "reconstruction_error": manifest.reconstruction_error,
        "reconstruction_error_is_bound": manifest.error_is_bound,
        "packing": manifest.packing.model_dump(mode="json") if manifest.packing else None,
        "modules": [row._asdict() for row in kind_rows(manifest.sizes)],
        "scores": manifest.scores,
        "remarks": manifest.remarks,
    }


def adapter_facts(adapter: PeftAdapter) -> dict[str, Any]:
    """Return the facts in the header and config of a PEFT adapter; norms would need its numbers."""
    return {
        "path": str(adapter.path),
        "kind": "PEFT adapter",
        "base": adapter_base(adapter.path),
        "fingerprint": fingerprint_file(adapter.weights_file),
        "bytes": adapter.weights_file.stat().st_size,
        "parameters": sum(math.prod(delta.shape) for delta in adapter.deltas.values()),
        "tensors": len(adapter.deltas),
        "ranks": dict(Counter(delta.rank for delta in adapter.deltas.values())),
        "modules": [{"kind": kind, "tensors": len(deltas)} for kind, deltas in by_kind(adapter.deltas).items()],
    }
