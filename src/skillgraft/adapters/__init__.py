"""Adapters: trainable changes of a frozen model, one kind a file, and the one dict of them. Loads no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from skillgraft.adapters import peft_file
from skillgraft.adapters.kind import FULL_BYTES, Adapter, AdapterKind
from skillgraft.checkpoint.layout import ADAPTER_CONFIG_FILE, Layout, require_directory
from skillgraft.checkpoint.safe_read import read_json_object
from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.support.extensions import with_extensions


def _lora(arguments: Mapping[str, Any]) -> Adapter:
    from skillgraft.adapters.lora import LoraAdapter

    return LoraAdapter(arguments)


BUILTIN: dict[str, AdapterKind] = {
    "lora": AdapterKind(create=_lora, peft_type="LORA", exact_delta=peft_file.read_adapter, bytes_per_weight=4),
}

ADAPTERS = with_extensions("adapters", BUILTIN)
"""Every kind of adapter by its name, those of installed extensions included."""


def adapter_kind(adapt: Mapping[str, Any]) -> AdapterKind:
    """Return the kind that an `adapt:` mapping names; `RecipeError` lists those that there are."""
    name = adapt.get("kind")
    if name is None:
        raise RecipeError(f"adapt: 'kind' is missing; expected one of {', '.join(ADAPTERS)}")
    if not isinstance(name, str) or name not in ADAPTERS:
        raise RecipeError(f"adapt: kind '{name}' is not known{did_you_mean(str(name), ADAPTERS)}")
    return ADAPTERS[name]


def get_adapter(adapt: Mapping[str, Any] | None) -> Adapter | None:
    """Return the adapter of an `adapt:` mapping, checked; None for none, which is full fine-tuning."""
    if adapt is None:
        return None
    return adapter_kind(adapt).create({key: value for key, value in adapt.items() if key != "kind"})


def training_bytes(adapt: Mapping[str, Any] | None) -> float:
    """Return the bytes of memory that each of the base's weights takes in training."""
    return FULL_BYTES if adapt is None else adapter_kind(adapt).bytes_per_weight


def read_adapter(directory: str | os.PathLike[str], target: Layout | None = None) -> peft_file.PeftAdapter:
    """Return the update of the adapter saved in `directory`, read by its kind; reads no tensor data.

    PEFT names modules as they are in memory. With the checkpoint `target`, its deltas get the names of the tensors that
    this stores, where both differ.

    Raises `CheckpointError` and `CompatibilityError` as `peft_file.read_adapter` does, which reads what no kind claims.
    """
    stated = read_json_object(require_directory(directory) / ADAPTER_CONFIG_FILE).get("peft_type")
    kind = next((kind for kind in ADAPTERS.values() if kind.peft_type == stated), ADAPTERS["lora"])
    adapter = kind.exact_delta(Path(directory))
    if target is None or adapter.deltas.keys() <= target.tensors.keys():
        return adapter
    from skillgraft.checkpoint.weight_names import stored_names

    stored = stored_names(target.path, target.tensors)
    deltas = {name if name in target.tensors else stored.get(name, name): d for name, d in adapter.deltas.items()}
    return replace(adapter, deltas=deltas)
