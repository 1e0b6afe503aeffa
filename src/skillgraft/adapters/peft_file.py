"""A PEFT LoRA adapter directory as the low-rank deltas that it means, without loading PEFT.

delta = (alpha / r) · B @ A, or alpha / sqrt(r) with rsLoRA (arXiv 2106.09685 section 4.1, arXiv 2312.03732).
Whatever makes an adapter more or other than that is refused.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from skillgraft.checkpoint.header import TensorInfo, read_header
from skillgraft.checkpoint.layout import ADAPTER_CONFIG_FILE, require_directory
from skillgraft.checkpoint.safe_read import read_json_object
from skillgraft.errors import CheckpointError, CompatibilityError

ADAPTER_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight$")
# Initialisations that leave the base's weights alone; PiSSA, OLoRA, CorDA, LoftQ and others rewrite them, so that
# B @ A is not the difference from the checkpoint.
_NEUTRAL_INITS = (True, False, "gaussian", "eva", "orthogonal")
REFUSED = {
    "use_dora": "DoRA rescales whole rows",
    "fan_in_fan_out": "weights stored as (in, out) are not supported",
    "modules_to_save": "it holds whole modules beside the low-rank factors",
    "lora_bias": "it trains biases",
    "layer_replication": "it changes the number of layers",
    "trainable_token_indices": "it trains single token rows",
    "target_parameters": "it adapts parameters outside linear layers",
    "alora_invocation_tokens": "it is active for some tokens only",
    "use_qalora": "QALoRA pools the inputs",
    "use_bdlora": "block-diagonal factors are not supported",
    "arrow_config": "Arrow routes between adapters",
    "kasa_config": "KaSA changes the base's weights",
    "monteclora_config": "MonteCLoRA samples its factors",
}
"""Arguments of LoraConfig by which an update is no `scaling · B @ A` of one stored matrix, and why."""


class LowRankDelta(NamedTuple):
    """One adapted parameter: `scaling · b @ a`, a (rank, in), b (out, rank)."""

    a: TensorInfo
    b: TensorInfo
    scaling: float

    @property
    def rank(self) -> int:
        """The rank of the factors."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the product, which is the parameter's."""
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class PeftAdapter:
    """A checked LoRA adapter: its deltas by parameter name."""

    path: Path
    deltas: dict[str, LowRankDelta]

    @property
    def weights_file(self) -> Path:
        """The file with the factors."""
        return self.path / ADAPTER_FILE


def is_adapter(directory: Path) -> bool:
    """Return whether `directory` is the root of a PEFT adapter."""
    return (directory / ADAPTER_CONFIG_FILE).is_file()


def adapter_base(directory: Path) -> str | None:
    """Return the id or path of the base model in an adapter's config, None if it has none."""
    stated = read_json_object(directory / ADAPTER_CONFIG_FILE).get("base_model_name_or_path")
    return stated if isinstance(stated, str) else None


def read_adapter(directory: str | os.PathLike[str]) -> PeftAdapter:
    """Return the checked LoRA adapter in `directory`; reads no tensor data.

    Raises `CheckpointError` for an incomplete or damaged directory and `CompatibilityError` for a kind of adapter
    whose delta is not `scaling · B @ A` on linear layers (DoRA, PiSSA, saved modules, biases, embeddings …).
    """
    directory = require_directory(directory)
    config = read_json_object(directory / ADAPTER_CONFIG_FILE)
    _check_kind(directory, config)
    file = directory / ADAPTER_FILE
    if not file.is_file():
        raise CheckpointError(
            f"{directory}: no {ADAPTER_FILE}; expected the adapter's weights as safetensors (pickle files are "
            "refused): save it again with save_pretrained"
        )
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for info in read_header(file).tensors:
        match = _KEY.match(info.name)
        if match is None or not info.is_float or len(info.shape) != 2:
            raise CompatibilityError(
                f"{file}: tensor {info.name!r} ({info.dtype}, shape {list(info.shape)}) is not a LoRA factor of a "
                f"linear layer; expected {_PREFIX}<module>.lora_A.weight and lora_B.weight only: merge the adapter and "
                "extract from the full checkpoint"
            )
        pairs.setdefault(match["module"], {})[match["side"]] = info
    if not pairs:
        raise CheckpointError(f"{file} holds no tensor; expected LoRA factors")
    deltas = {f"{module}.weight": _delta(file, module, sides, config) for module, sides in pairs.items()}
    return PeftAdapter(directory, deltas)


def _check_kind(directory: Path, config: dict[str, Any]) -> None:
    where, remedy = directory / ADAPTER_CONFIG_FILE, "merge the adapter and extract from the full checkpoint"
    if config.get("peft_type") != "LORA":
        raise CompatibilityError(f"{where}: peft_type is {config.get('peft_type')!r}, expected 'LORA'; {remedy}")
    for key, reason in REFUSED.items():
        if config.get(key):
            raise CompatibilityError(f"{where}: {key} is {config[key]!r}: {reason}; {remedy}")
    if config.get("bias", "none") != "none":
        raise CompatibilityError(f"{where}: bias is {config['bias']!r}, expected 'none'; {remedy}")
    if config.get("init_lora_weights", True) not in _NEUTRAL_INITS:
        raise CompatibilityError(
            f"{where}: init_lora_weights is {config['init_lora_weights']!r}, which rewrites the base's weights, so "
            f"that B @ A is not the difference; {remedy}"
        )
    for key, pattern, kinds in (("r", "rank_pattern", int), ("lora_alpha", "alpha_pattern", int | float)):
        patterns = config.get(pattern) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{where}: {pattern} is {patterns!r}, expected a mapping; the file is damaged")
        for name, value in {key: config.get(key), **patterns}.items():
            if not isinstance(value, kinds) or isinstance(value, bool) or not math.isfinite(value):
                raise CheckpointError(f"{where}: {name} is {value!r}, expected a number; the file is damaged")


def _delta(file: Path, module: str, sides: dict[str, TensorInfo], config: dict[str, Any]) -> LowRankDelta:
    if sides.keys() != {"A", "B"}:
        raise CheckpointError(
            f"{file}: module {module!r} has only lora_{next(iter(sides))}, expected lora_A and lora_B"
        )
    a, b = sides["A"], sides["B"]
    rank = _pattern_value(config.get("rank_pattern"), module, config["r"])
    alpha = _pattern_value(config.get("alpha_pattern"), module, config["lora_alpha"])
    if not a.shape[0] == b.shape[1] == rank or rank < 1:
        raise CheckpointError(
            f"{file}: module {module!r} has lora_A {list(a.shape)} and lora_B {list(b.shape)}, expected rank {rank} "
            f"from {ADAPTER_CONFIG_FILE}; the two files don't belong together"
        )
    return LowRankDelta(a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern_value(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of the module's name, as PEFT resolves it."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise CheckpointError(f"{ADAPTER_CONFIG_FILE}: {pattern!r} is not a regular expression: {error}") from error
    return default
