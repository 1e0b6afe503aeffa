"""Checkpoint layout: config, index and every tensor's place, read from the headers alone."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.checkpoint.header import Header, TensorInfo, read_header
from skillgraft.checkpoint.safe_read import read_error, read_json_object, require_regular, shown
from skillgraft.checkpoint.tensor_io import read_tensor
from skillgraft.errors import CheckpointError, MissingPathError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
ADAPTER_CONFIG_FILE = "adapter_config.json"
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
WEIGHTS_SUFFIX = ".safetensors"
MAX_CONFIG_BYTES = 1 << 24
QUANTISED_KEYS = ("quantization_config", "compression_config", "quantization")
# What quantisation libraries store beside an integer tensor: by the tensor's name, and by the module that holds it.
QUANTISED_COMPANIONS = (".absmax", ".quant_map", "_scale", "_scale_inv", "_scales")
QUANTISED_SIBLINGS = ("SCB", "scales", "weight_scale", "weight_scale_inv")


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
        """Return the tensor `name` in its stored dtype and shape; `CheckpointError` if it is missing."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} holds no tensor {name!r}{did_you_mean(name, self.tensors)}")
        return read_tensor(self.tensors[name])


def read_layout(directory: str | os.PathLike[str]) -> Layout:
    """Return the layout of the checkpoint in `directory`; reads no tensor data.

    Raises `MissingPathError` when there is no such directory and `CheckpointError` for one that is incomplete,
    damaged, quantised, or holds only pickle or GGUF weights; the message names the file and the tensor.
    """
    directory = require_directory(directory)
    config = read_config(directory)
    files, index = weight_files(directory)
    tensors = collect_tensors(directory, (read_header(file) for file in files), index)
    return Layout(directory, config, tensors, index)


def collect_tensors(
    directory: Path, headers: Iterable[Header], index: Mapping[str, Any] | None
) -> dict[str, TensorInfo]:
    """Return the tensors of all `headers` by name, checked against each other and the index.

    Raises `CheckpointError` for no tensor at all, one that is in two files, one that the index puts elsewhere or does
    not list, and quantised storage.
    """
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for info in header.tensors:
            if info.name in tensors:
                raise CheckpointError(
                    f"{directory}: tensor {info.name!r} is in {tensors[info.name].file.name} and in {info.file.name}; "
                    "expected it once: save the checkpoint again with save_pretrained"
                )
            tensors[info.name] = info
    if not tensors:
        raise CheckpointError(f"{directory}: its safetensors hold no tensor; expected the weights of a model")
    if index is not None:
        _check_index(directory, index["weight_map"], tensors)
    _refuse_quantised(directory, tensors)
    return tensors


def require_directory(directory: str | os.PathLike[str]) -> Path:
    """Return `directory` as a path; `MissingPathError` when it does not exist, `CheckpointError` for a file."""
    path = Path(directory)
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise MissingPathError(
            f"{path}: no such directory; expected a checkpoint (config.json, safetensors, tokenizer)"
        ) from error
    except OSError as error:
        raise read_error(path, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise CheckpointError(f"{path} is a file; expected the checkpoint's directory, which holds config.json")
    if not os.access(path, os.R_OK | os.X_OK):
        raise CheckpointError(
            f"{path}: may not be read; expected a directory that you may list and enter: check owner and mode"
        )
    return path


def weight_files(directory: Path) -> tuple[list[Path], dict[str, Any] | None]:
    """Return the safetensors files of a checkpoint, sorted by name, and its index (None for a single file).

    As in Transformers, `model.safetensors` takes precedence over an index. Raises `CheckpointError` when there are no
    safetensors weights or when the index names a file that is missing or outside the directory.
    """
    # A broken link or a folder of that name gets its own error, as what follows would be misleading.
    if os.path.lexists(directory / WEIGHTS_FILE):
        require_regular(directory / WEIGHTS_FILE)
        return [directory / WEIGHTS_FILE], None
    index_path = directory / INDEX_FILE
    if not os.path.lexists(index_path):
        raise CheckpointError(_no_weights_message(directory))
    index = read_json_object(index_path)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index_path}: got no weight_map, expected a map from tensor names to shard files")
    checked: set[str] = set()
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or shard not in checked:
            checked.add(_check_shard(directory, tensor, shard))
    return [directory / shard for shard in sorted(checked)], index


def _check_shard(directory: Path, tensor: str, shard: Any) -> str:
    """Return the name of a shard, which must be that of a regular file, or of a link to one, in the directory."""
    # Only plain names: a path such as ../x or /x would read, and later write, outside the directory.
    plain = isinstance(shard, str) and shard.isprintable() and not set(shard) & {"/", "\\"}
    if not plain or not shard.endswith(WEIGHTS_SUFFIX):
        raise CheckpointError(
            f"{directory / INDEX_FILE}: tensor {shown(tensor)} is mapped to {shown(shard)}, which is "
            "no safetensors file or can leave the directory; expected the plain name of a "
            f"{WEIGHTS_SUFFIX} file beside the index"
        )
    try:
        require_regular(directory / shard)
    except MissingPathError as error:
        raise CheckpointError(
            f"{directory}: the index puts tensor {shown(tensor)} into {shard}, which is missing; download it again"
        ) from error
    return shard


def _check_index(directory: Path, weight_map: dict[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            actual_place = f"it is in {tensors[name].file.name}" if name in tensors else "no shard holds it"
            raise CheckpointError(
                f"{directory}: the index puts tensor {shown(name)} into {shard}, but {actual_place}; write it again"
            )
    for name, info in tensors.items():
        if name not in weight_map:
            raise CheckpointError(
                f"{directory}: {info.file.name} holds tensor {name!r}, which the index does not list; write it again"
            )


def _refuse_quantised(directory: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Refuse integer weights that have a scale beside them, whatever the config says or leaves out."""
    for name, info in tensors.items():
        if info.is_float:
            continue
        module = name[: name.rfind(".") + 1]
        stem = name.removesuffix("_blocks").removesuffix("_packed")
        companions = [stem + suffix for suffix in QUANTISED_COMPANIONS] + [module + own for own in QUANTISED_SIBLINGS]
        scale_tensor = next((other for other in companions if other in tensors and other != name), None)
        if scale_tensor is not None:
            raise CheckpointError(
                f"{directory}: tensor {name!r} is {info.dtype} and {scale_tensor!r} is beside it: the weights are "
                "quantised and arithmetic on them is refused; use the checkpoint's bfloat16, float16 or float32 version"
            )


def read_config(directory: Path) -> dict[str, Any]:
    """Return the content of `config.json`; `CheckpointError` when there is none or it names quantised weights."""
    path = directory / CONFIG_FILE
    if not os.path.lexists(path):
        if (directory / ADAPTER_CONFIG_FILE).is_file():
            raise CheckpointError(
                f"{directory} is a PEFT adapter (it has {ADAPTER_CONFIG_FILE} and no {CONFIG_FILE}); expected a full "
                "checkpoint: merge it with merge_and_unload and save_pretrained"
            )
        raise CheckpointError(f"{directory}: no {CONFIG_FILE}; expected a Hugging Face model directory")
    config = read_json_object(path, MAX_CONFIG_BYTES)
    parts = {"": config} | {f"{name}.": part for name, part in config.items() if isinstance(part, dict)}
    for prefix, part in parts.items():  # a multimodal config keeps the language model's in text_config
        for key in QUANTISED_KEYS:
            if part.get(key):
                raise CheckpointError(
                    f"{path} has a {prefix}{key}: the weights are quantised and arithmetic on them is refused; "
                    "use the checkpoint's bfloat16, float16 or float32 version; or, where its tensors are whole "
                    f"already and the key is left over, delete {prefix}{key} from {CONFIG_FILE}"
                )
    return config


def context_of(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model with this `config.json` can see, None where it does not say."""
    text = config.get("text_config", config)
    limits = [text.get(name) for name in ("max_position_embeddings", "n_positions")] if isinstance(text, dict) else []
    return next((value for value in limits if isinstance(value, int)), None)


def _no_weights_message(directory: Path) -> str:
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise read_error(directory, error) from error
    expected = f"expected {WEIGHTS_FILE} or {INDEX_FILE}"
    if loose := [name for name in names if name.endswith(".safetensors")]:
        return f"{directory}: found {', '.join(loose)} without {INDEX_FILE}; {expected}: download the missing file"
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return (
            f"{directory}: GGUF weights only ({', '.join(gguf)}), which a recipe's base takes and nothing else; "
            f"{expected}: use the checkpoint that they were converted from"
        )
    if pickles := [name for name in names if Path(name).suffix in PICKLE_SUFFIXES]:
        return (
            f"{directory}: pickle weights only ({', '.join(pickles)}), which are refused because loading them can run "
            f"code; {expected}: convert them with save_pretrained, which writes safetensors"
        )
    return f"{directory}: no weights; {expected}"


def parameters_of(layout: Layout) -> int:
    """Return how many numbers a checkpoint stores."""
    return sum(math.prod(info.shape) for info in layout.tensors.values())
