"""Sidecar files of a checkpoint, beside its weights: copied from the target, with the dtype in its config corrected."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from skillgraft.arithmetic.plan import Plan
from skillgraft.checkpoint.layout import ADAPTER_CONFIG_FILE, CONFIG_FILE, PICKLE_SUFFIXES, Layout
from skillgraft.checkpoint.provenance import PROVENANCE_FILE
from skillgraft.checkpoint.tensor_io import TORCH_NAMES
from skillgraft.support.atomic import atomic_write_json

_WEIGHT_SUFFIXES = PICKLE_SUFFIXES | {".safetensors", ".gguf", ".onnx", ".msgpack", ".h5"}
_LEFT_OUT = (PROVENANCE_FILE, ADAPTER_CONFIG_FILE)
_COPIED_FOLDERS = ("additional_chat_templates",)


def copy_sidecar_files(layout: Layout, directory: Path, dtype: str | None) -> None:
    """Copy everything of a checkpoint but weights, index, provenance, adapters and hidden files into `directory`.

    With `dtype`, the copied config names it, so that Transformers loads the weights in what they are stored in.
    """
    for entry in sorted(layout.path.iterdir()):
        skipped = entry.suffix in _WEIGHT_SUFFIXES or entry.name.endswith(".index.json") or entry.name.startswith(".")
        if entry.is_file() and not skipped and entry.name not in _LEFT_OUT:
            shutil.copyfile(entry, directory / entry.name)
        elif entry.is_dir() and entry.name in _COPIED_FOLDERS:
            shutil.copytree(entry, directory / entry.name, dirs_exist_ok=True)
    if dtype is not None:
        atomic_write_json(directory / CONFIG_FILE, _with_dtype(layout.config, dtype))


def stated_dtype(plan: Plan) -> tuple[str | None, list[str]]:
    """Return the dtype that the output's config must name (None: as it is), and a remark where the target's was wrong.

    A config that says bfloat16 over fp32 weights makes loaders round them: half of a skill can be lost so.
    """
    if plan.dtype is not None:
        return plan.dtype, []
    stored = {TORCH_NAMES[tensor.spec.dtype] for tensor in plan.tensors if tensor.target.info.is_float}
    named = plan.target.config.get("dtype", plan.target.config.get("torch_dtype"))
    if len(stored) != 1 or not isinstance(named, str) or named.removeprefix("torch.") in stored:
        return None, []
    actual = stored.pop()
    return actual, [f"the target's config says {named}, its weights are {actual}; the output's config says {actual}"]


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return a config that names `dtype`, under each key (`dtype`, older `torch_dtype`) and level that it uses."""
    changed = {
        key: _with_dtype(value, dtype)
        if key.endswith("_config") and isinstance(value, dict) and "dtype" in value
        else value
        for key, value in config.items()
    }
    if "torch_dtype" in config:
        changed["torch_dtype"] = dtype
    if "dtype" in config or "torch_dtype" not in config:
        changed["dtype"] = dtype
    return changed
