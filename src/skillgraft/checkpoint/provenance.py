"""`skillgraft.json`: what made a checkpoint, from which inputs and on which base."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.checkpoint.layout import require_directory
from skillgraft.checkpoint.safe_read import read_json_object
from skillgraft.errors import CheckpointError
from skillgraft.support.atomic import atomic_write_json

PROVENANCE_FILE = "skillgraft.json"
FORMAT_VERSION = 1
RECORDED_PACKAGES = ("skillgraft", "torch", "transformers", "trl", "peft", "safetensors", "tokenizers")


def write_provenance(
    directory: str | os.PathLike[str],
    *,
    kind: str,
    base: Mapping[str, str | None],
    made_by: Mapping[str, Any] | None = None,
    inputs: Mapping[str, str] | None = None,
) -> Path:
    """Write `skillgraft.json` into a checkpoint directory and return its path.

    `kind` names what made it, such as a stage kind; `base` is `{"id", "fingerprint"}` of the pre-trained checkpoint (a
    fingerprint of None means unknown); `made_by` are the stage's settings, `inputs` the fingerprints of what
    it read by name.
    """
    path = Path(directory) / PROVENANCE_FILE
    content = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "base": {"id": base.get("id"), "fingerprint": base.get("fingerprint")},
        "made_by": dict(made_by or {}),
        "inputs": dict(inputs or {}),
        "versions": software_versions(),
    }
    atomic_write_json(path, content)
    return path


def read_provenance(directory: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return the content of a checkpoint's `skillgraft.json`, None when it has none.

    Raises `CheckpointError` when the file is damaged or of another format version.
    """
    path = Path(directory) / PROVENANCE_FILE
    if not path.is_file():
        return None
    content = read_json_object(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {content.get('format_version')!r}, expected {FORMAT_VERSION}; "
            "it was written by another version of Skillgraft: use that version, or delete the file"
        )
    if not isinstance(content.get("base"), dict) or not isinstance(content.get("inputs", {}), dict):
        raise CheckpointError(f"{path}: 'base' or 'inputs' is not an object; the file is damaged: delete it")
    return content


def base_of(directory: str | os.PathLike[str]) -> dict[str, str | None] | None:
    """Return `{"id", "fingerprint"}` of the base that a checkpoint's provenance names, None when it names none."""
    provenance = read_provenance(directory)
    if provenance is None or not provenance["base"].get("fingerprint"):
        return None
    return {"id": provenance["base"].get("id"), "fingerprint": provenance["base"]["fingerprint"]}


def base_for_training(directory: str | os.PathLike[str], model_id: str | None = None) -> dict[str, str | None]:
    """Return the base that a model trained from `directory` has: its provenance's, else `directory` itself.

    `model_id` is the hub id to record in the second case.
    """
    directory = require_directory(directory)
    return base_of(directory) or {"id": model_id, "fingerprint": fingerprint_checkpoint(directory)}


def software_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape a result, without importing them."""
    versions = {"python": platform.python_version()}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
