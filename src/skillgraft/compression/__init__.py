"""Compression: a skill in another, smaller storage form, with the loss in its manifest.

The path: settings are checked, every tensor gets a choice (`choices`), each is read, encoded and measured on its own
(`encoding`), as many side by side as there are cores and memory for, and manifest and card are written. Memory is that
of the largest tensor in fp32 a few times over for each, and of its factors.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from skillgraft.arithmetic.buffers import Buffers, Files, file_version
from skillgraft.arithmetic.extraction import timestamp
from skillgraft.checkpoint.default_model import resolve_base
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.header import TensorSpec, encode_header
from skillgraft.checkpoint.layout import read_layout
from skillgraft.checkpoint.provenance import software_versions
from skillgraft.checkpoint.sorted_writer import SortedWriter
from skillgraft.checkpoint.writer import atomic_directory
from skillgraft.compression.choices import Localisation, choose
from skillgraft.compression.deltas import check_memory
from skillgraft.compression.encoding import Encoded, encode
from skillgraft.compression.settings import PackSettings
from skillgraft.compression.side_by_side import side_by_side
from skillgraft.data.tasks import questions_path, read_questions
from skillgraft.errors import CompatibilityError, RecipeError
from skillgraft.skills.card import card_text
from skillgraft.skills.compatibility import check_compatibility
from skillgraft.skills.forms import FORMS
from skillgraft.skills.library import resolve_skill
from skillgraft.skills.manifest import FORMAT_VERSION, Packing, TensorEntry, manifest_text
from skillgraft.skills.modules import KINDS, module_kind
from skillgraft.skills.skill import WEIGHTS_FILE, Skill, add_scores, load_skill, write_skill_description
from skillgraft.support.progress import Progress

__all__ = ["PackSettings", "pack"]

DEFAULT_STEPS = 40
_ENTRY_BYTES = 165
"""Bytes that packing adds at most to a tensor's entry in the manifest."""


def pack(
    skill: Skill | str | os.PathLike[str],
    out: str | os.PathLike[str],
    form: str,
    *,
    budget: int | None = None,
    rank: int | None = None,
    energy: float | None = None,
    density: float | None = None,
    dtype: str | None = None,
    localise_on: str | os.PathLike[str] | None = None,
    target: str | os.PathLike[str] | None = None,
    steps: int | None = None,
    progress: Progress | None = None,
) -> Skill:
    """Write `skill` in another storage form into the new directory `out` and return it.

    `dense`; `sparse`, lossless: the elements that are not 0; `lowrank`: matrices as truncated SVD; `packed`: after
    SkillPacks (arXiv 2505.18502), see `choices`; `mask`: the largest elements of the whole vector, the initial mask of
    skill localisation (arXiv 2302.06600, section 3), or with `localise_on` (questions) and `target` (a checkpoint that
    fits the skill) the mask that `steps` steps (40) on the loss of their answers make of it (`mask`). How much is kept:
    `budget` (bytes of the directory), `rank`, `energy` (share of each matrix's squared norm) or `density` (share of
    elements). Tensors other than matrices stay exact except in `dense` and `mask`. A tensor of which nothing is left is
    not stored. The manifest records the loss of each tensor; scores are not copied, since they are the original's.

    Raises as `load_skill` does, `RecipeError` for settings that don't fit, `CompatibilityError` for NaN, overflow, too
    little memory or when nothing is left, `OutputExistsError`, `StorageError`.
    """
    settings = PackSettings(form, budget, rank, energy, density, dtype)
    source = skill if isinstance(skill, Skill) else load_skill(resolve_skill(skill).path)
    localisation, mask_record = _localisation(source, settings, localise_on, target, steps)
    versions = {source.weights_file: file_version(source.weights_file.stat())}
    entries: dict[str, TensorEntry] = {}
    sums: dict[str, list[tuple[float, float]]] = defaultdict(list)
    inputs = {"skill": fingerprint_file(source.weights_file)}
    metadata = {"format": "pt", "skillgraft_inputs": json.dumps(inputs)}
    with atomic_directory(out) as partial, Files(versions) as files:
        with SortedWriter(partial / WEIGHTS_FILE, metadata) as file:
            step = _steps(source, 2 if settings.looks_first else 1, progress)
            overhead = _overhead(source, metadata) + (2 * len(json.dumps(mask_record)) if mask_record else 0)
            choices = choose(source, settings, overhead, files, step, localisation)
            check_memory(source, (name for name, choice in choices.items() if choice.form not in ("keep", "leave")))

            def encoded(name: str, scratch: Buffers) -> Encoded:
                return encode(source, name, choices[name], files, scratch)

            for name, encoded_tensor in side_by_side(source, choices, encoded):
                sums[module_kind(name)].append((encoded_tensor.exact, encoded_tensor.lost))
                if encoded_tensor.entry is not None:
                    entries[name] = encoded_tensor.entry
                    for spec, data in zip(encoded_tensor.entry.specs(name), encoded_tensor.data, strict=True):
                        file.add(spec, data)
                step(name)
        files.check_unchanged()
        if not entries:
            raise CompatibilityError(f"{source.path}: nothing is left of the skill at these settings; keep more of it")
        before, lost = source.manifest.reconstruction_error, _error([pair for pairs in sums.values() for pair in pairs])
        errors = {kind: _error(sums[kind]) for kind in KINDS if kind in sums}
        manifest = source.manifest.model_copy(
            update={
                "format_version": FORMAT_VERSION,
                "created": timestamp(),
                "skillgraft_version": importlib.metadata.version("skillgraft"),
                # ‖stored − v‖ ≤ ‖source − v‖ + ‖stored − source‖, and ‖source‖ ≤ (1 + before)·‖v‖
                "reconstruction_error": before + (1 + before) * lost,
                "packing": Packing(
                    form=settings.form,  # type: ignore[arg-type]
                    settings=settings.as_dict() | mask_record,
                    source=inputs["skill"],
                    source_reconstruction_error=before,
                    source_bytes=directory_bytes(source.path),
                    error=lost,
                    errors=errors,
                ),
                "tensors": entries,
                "scores": [],
                "versions": software_versions(),
            }
        )
        write_skill_description(partial, manifest)
    return load_skill(Path(out))


def _localisation(
    skill: Skill,
    settings: PackSettings,
    questions: str | os.PathLike[str] | None,
    target: str | os.PathLike[str] | None,
    steps: int | None,
) -> tuple[Localisation | None, dict[str, Any]]:
    """Return the function that optimises a mask, and its record for the manifest; nothing without questions."""
    if questions is None:
        if steps is not None or target is not None:
            raise RecipeError(
                f"steps {steps}, target {target}: they are for optimising a mask; expected them with questions to "
                "optimise it on (--localise-on)"
            )
        return None, {}
    steps = DEFAULT_STEPS if steps is None else steps
    if settings.form != "mask" or target is None or steps < 1:
        raise RecipeError(
            f"form {settings.form}, target {target}, steps {steps}: only a mask is optimised, on a target checkpoint, "
            "in 1 step or more; expected --form mask with --localise-on and --target"
        )
    tasks, directory = read_questions(Path(questions)), resolve_base(str(target), lambda message: None)
    check_compatibility(read_layout(directory), skill)

    def localise(deltas: Mapping[str, Tensor], count: int) -> Mapping[str, Tensor]:
        from skillgraft.compression.mask import optimise_mask

        return optimise_mask(deltas, directory, tasks, count, steps=steps)

    mask_record = {
        "questions": fingerprint_file(questions_path(Path(questions))),
        "target": fingerprint_checkpoint(directory),
        "steps": steps,
    }
    return localise, mask_record


def _steps(skill: Skill, passes: int, progress: Progress | None) -> Callable[[str], None]:
    """Return the function to call after each tensor of each pass; it reports progress."""
    sizes = {name: skill.entry(name).elements for name in skill.names}
    done = 0

    def step(name: str) -> None:
        nonlocal done
        done += sizes[name]
        if progress is not None:
            progress(done, passes * sum(sizes.values()))

    return step


def directory_bytes(path: Path) -> int:
    """Return the bytes of a skill's files."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def record_scores(skill: Skill, scores: Sequence[Mapping[str, Any]], budget: int | None = None) -> bool:
    """Write measured `scores` into a packed skill's manifest and card; return False where the budget has no room."""
    manifest = skill.manifest.model_copy(update={"scores": [*skill.manifest.scores, *map(dict, scores)]})
    description = len(manifest_text(manifest).encode()) + len(card_text(manifest).encode())
    if budget is not None and skill.weights_file.stat().st_size + description > budget:
        return False
    add_scores(skill.path, scores)
    return True


def describe(skill: Skill, source: Skill | None = None) -> dict[str, Any]:
    """Describe a packed skill: sizes in bytes, ratios, errors whole and by module kind, remarks.

    `packing_error` and `errors` are relative to what it was packed from, `reconstruction_error` to the exact skill.
    With `source` the dense size counts what was dropped whole, too, and the remarks cover its scores.
    """
    packing, size = skill.manifest.packing, directory_bytes(skill.path)
    elements = sum((source or skill).entry(name).elements for name in (source or skill).names)
    return {
        "skill": str(skill.path),
        "form": skill.form,
        "tensors": len(skill.names),
        "size_bytes": size,
        "source_bytes": packing.source_bytes if packing else size,
        "ratio": packing.source_bytes / size if packing else 1.0,
        "dense_ratio": 4 * elements / size,
        "reconstruction_error": skill.manifest.reconstruction_error,
        "reconstruction_error_is_bound": skill.manifest.error_is_bound,
        "packing_error": packing.error if packing else 0.0,
        "source_reconstruction_error": packing.source_reconstruction_error if packing else 0.0,
        "errors": dict(packing.errors) if packing else {},
        "settings": dict(packing.settings) if packing else {},
        "remarks": _remarks(skill, source),
    }


def _remarks(skill: Skill, source: Skill | None) -> list[str]:
    remarks, packing = [], skill.manifest.packing
    if packing is not None and packing.form in ("lowrank", "packed") and "dtype" not in packing.settings:
        entries = [skill.entry(name) for name in skill.names]
        coarse = [e for e in entries if e.form != "packed" and e.dtype == "BF16" and e.reconstruction_error]
        if coarse:
            remarks.append(
                f"{len(coarse)} of {len(entries)} tensors are stored in bfloat16, since float16 would lose more of "
                "numbers as small or large as theirs"
                + ("; --dtype float32 keeps them best, in twice the bytes" if packing.form == "lowrank" else "")
            )
    if source is not None and source.manifest.scores:
        remarks.append(
            f"the original's {len(source.manifest.scores)} rows of scores are not in the manifest: they were measured "
            "with other weights; --questions measures it again"
        )
    return remarks


def _error(pairs: list[tuple[float, float]]) -> float:
    exact, lost = (math.fsum(column) for column in zip(*pairs, strict=True))
    return (lost / exact) ** 0.5 if exact else 0.0


def _overhead(skill: Skill, metadata: dict[str, str]) -> int:
    """Return the most bytes that a packed directory has beside its numbers: header, manifest and card."""
    longest = max(FORMS.values(), key=len)
    specs = [
        TensorSpec(name + suffix, "BF16", (*skill.shape(name), skill.entry(name).elements))
        for name in skill.names
        for suffix in longest
    ]
    manifest = len(manifest_text(skill.manifest).encode()) + _ENTRY_BYTES * (len(skill.names) + 5)
    return len(encode_header(specs, metadata)) + manifest + len(card_text(skill.manifest).encode()) + _ENTRY_BYTES
