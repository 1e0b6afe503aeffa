"""What a checkpoint directory holds, read from its config, index and safetensors headers alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.checkpoint.header import TensorInfo, read_header
from skillgraft.checkpoint.json_file import read_json_object
from skillgraft.checkpoint.tensor_io import read_tensor
from skillgraft.errors import CheckpointError, MissingPathError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})


@dataclass(frozen=True)
class Layout:
    """The plan of a checkpoint: every tensor with its place, in the order of files and bytes.

    `index` is the content of `model.safetensors.index.json`, None for a checkpoint in one file.
    """

    path: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    index: dict[str, Any] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, each once, in the order of `tensors`."""
        return tuple(dict.fromkeys(info.file for info in self.tensors.values()))

    def read(self, name: str) -> Tensor:
        """Return the tensor `name` in its stored dtype and shape; `CheckpointError` when there is none."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} holds no tensor {name!r}{did_you_mean(name, self.tensors)}")
        return read_tensor(self.tensors[name])


def read_layout(directory: str | os.PathLike[str]) -> Layout:
    """Return the layout of the checkpoint in `directory`; reads no tensor data.

    Raises `MissingPathError` when there is no such directory and `CheckpointError` for one that is incomplete,
    damaged, quantised, or holds only pickle or GGUF weights; the message names the file and the tensor.
    """
    directory = require_directory(directory)
    config = _read_config(directory)
    files, index = weight_files(directory)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for info in read_header(file).tensors:
            if info.name in tensors:
                raise CheckpointError(
                    f"{directory}: tensor {info.name!r} is in {tensors[info.name].file.name} and in {file.name}; "
                    "expected it once: save the checkpoint again with save_pretrained"
                )
            tensors[info.name] = info
    if not tensors:
        raise CheckpointError(f"{directory}: {files[0].name} holds no tensor; expected the weights of a model")
    if index is not None:
        _check_index(directory, index["weight_map"], tensors)
    return Layout(directory, config, tensors, index)


def require_directory(directory: str | os.PathLike[str]) -> Path:
    """Return `directory` as a path; `MissingPathError` when it does not exist, `CheckpointError` for a file."""
    path = Path(directory)
    if not path.exists():
        raise MissingPathError(
            f"{path}: no such directory; expected a checkpoint (config.json, safetensors, tokenizer)"
        )
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file; expected the checkpoint's directory, which holds config.json")
    return path


def weight_files(directory: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """Return the safetensors files of a checkpoint, sorted by name, and its index (None for a single file).

    As in Transformers, `model.safetensors` goes before an index. Raises `CheckpointError` when there are no
    safetensors weights or when the index names a file that is missing or outside the directory.
    """
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE], None
    index_path = directory / INDEX_FILE
    if not index_path.is_file():
        raise CheckpointError(_no_weights_message(directory))
    index = read_json_object(index_path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: got no weight_map, expected a map from tensor names to shard files")
    for tensor, shard in weight_map.items():
        # Only plain names: a path such as ../x or /x would read, and later write, outside the directory.
        if not isinstance(shard, str) or shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard:
            raise CheckpointError(
                f"{index_path}: tensor {tensor!r} is said to be in {shard!r}, a path that can leave the directory; "
                "expected the plain name of a shard beside the index"
            )
        if not (directory / shard).is_file():
            raise CheckpointError(
                f"{directory}: the index puts tensor {tensor!r} into {shard}, which is missing; download it again"
            )
    return [directory / shard for shard in sorted(set(weight_map.values()))], index


def _check_index(directory: Path, weight_map: dict[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            found = f"it is in {tensors[name].file.name}" if name in tensors else "no shard holds it"
            raise CheckpointError(
                f"{directory}: the index puts tensor {name!r} into {shard}, but {found}; write it again"
            )
    for name, info in tensors.items():
        if name not in weight_map:
            raise CheckpointError(
                f"{directory}: {info.file.name} holds tensor {name!r}, which the index does not list; write it again"
            )


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_FILE
    if not path.is_file():
        if (directory / ADAPTER_CONFIG_FILE).is_file():
            raise CheckpointError(
                f"{directory} is a PEFT adapter (it has {ADAPTER_CONFIG_FILE} and no {CONFIG_FILE}); expected a full "
                "checkpoint: merge it with merge_and_unload and save_pretrained"
            )
        raise CheckpointError(f"{directory}: no {CONFIG_FILE}; expected a Hugging Face model directory")
    config = read_json_object(path)
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            raise CheckpointError(
                f"{path} has a {key}: the weights are quantised and arithmetic on them is refused; "
                "use the checkpoint's bfloat16, float16 or float32 version"
            )
    return config


def _no_weights_message(directory: Path) -> str:
    names = sorted(entry.name for entry in directory.iterdir() if entry.is_file())
    expected = f"expected {WEIGHTS_FILE} or {INDEX_FILE}"
    if loose := [name for name in names if name.endswith(".safetensors")]:
        return f"{directory}: found {', '.join(loose)} without {INDEX_FILE}; {expected}: download the missing file"
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return (
            f"{directory}: GGUF weights only ({', '.join(gguf)}), which are refused; {expected}: use the checkpoint "
            "that they were converted from"
        )
    if pickles := [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]:
        return (
            f"{directory}: pickle weights only ({', '.join(pickles)}), which are refused because loading them can run "
            f"code; {expected}: convert them with save_pretrained, which writes safetensors"
        )
    return f"{directory}: no weights; {expected}"
