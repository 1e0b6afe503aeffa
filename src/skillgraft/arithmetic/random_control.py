"""The random control: a vector with a skill's norms and ranks and no direction in common with it."""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Literal

import torch
from blake3 import blake3

from skillgraft.arithmetic.extraction import timestamp
from skillgraft.arithmetic.norms import gaussian_factors, gaussian_like
from skillgraft.checkpoint.fingerprint import fingerprint_file
from skillgraft.checkpoint.provenance import software_versions
from skillgraft.checkpoint.weights import SafetensorsAppender
from skillgraft.checkpoint.writer import atomic_directory
from skillgraft.errors import RecipeError
from skillgraft.skills.forms import LOWRANK, stored_names
from skillgraft.skills.library import resolve_skill
from skillgraft.skills.manifest import TensorEntry
from skillgraft.skills.skill import WEIGHTS_FILE, Skill, load_skill, write_skill_description

RANDOM_FORMULA = (
    "random control: v = ‖v_skill‖ · g / ‖g‖ per tensor, g Gaussian (low rank: g = B·A with Gaussian factors)"
)


def random_vector(skill: Skill | str | os.PathLike[str], out: str | os.PathLike[str], seed: int) -> Skill:
    """Make a random control: a skill of random directions with the norms of `skill`, in the new directory `out`.

    `skill` is a skill, its directory or name in the library.
    Per tensor, v = ‖v_skill‖_F · g / ‖g‖_F with g Gaussian; for a low-rank or packed delta g = B·A with Gaussian
    factors of the same rank; a sparse one gets a dense control. The generator of each tensor is seeded by a hash of
    (seed, name), so that order doesn't matter. Stored in fp32. The manifest keeps the skill's base, tokenizer and
    sketch and says that it is a control.

    Raises as `resolve_skill` and `load_skill` do, `RecipeError` for a seed that is no integer, `OutputExistsError`,
    `StorageError`.
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise RecipeError(f"seed is {seed!r}, expected an integer")
    source = skill if isinstance(skill, Skill) else load_skill(resolve_skill(skill).path)
    entries = {name: _control_entry(entry) for name, entry in source.manifest.tensors.items()}
    planned = [spec for name, entry in entries.items() for spec in entry.specs(name)]
    metadata = {"format": "pt", "skillgraft_inputs": json.dumps({"skill": fingerprint_file(source.weights_file)})}
    with atomic_directory(out, needed_bytes=sum(spec.nbytes for spec in planned)) as partial:
        with SafetensorsAppender(partial / WEIGHTS_FILE, planned, metadata) as file:
            for name, entry in entries.items():
                generator = keyed_generator(seed, name)
                stored: tuple[torch.Tensor, ...]
                if entry.form == LOWRANK and entry.rank is not None:
                    stored = gaussian_factors((entry.shape[0], entry.shape[1]), entry.rank, entry.norm, generator)
                else:
                    stored = (gaussian_like(entry.shape, entry.norm, generator),)
                for key, tensor in zip(stored_names(name, entry.form), stored, strict=True):
                    file.add(key, tensor)
        manifest = source.manifest.model_copy(
            update={
                "formula": RANDOM_FORMULA,
                "created": timestamp(),
                "skillgraft_version": importlib.metadata.version("skillgraft"),
                "seed": seed,
                "reconstruction_error": 0.0,
                "packing": None,
                "tensors": entries,
                "scores": [],
                "versions": software_versions(),
            }
        )
        write_skill_description(partial, manifest)
    return load_skill(Path(out))


def _control_entry(entry: TensorEntry) -> TensorEntry:
    form: Literal["dense", "lowrank"] = "dense" if entry.rank is None else "lowrank"
    return TensorEntry(form=form, rank=entry.rank, shape=entry.shape, dtype="F32", norm=entry.norm)


def keyed_generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator seeded by BLAKE3 of (seed, name)."""
    digest = blake3(json.dumps([seed, name]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
