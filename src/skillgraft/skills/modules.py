"""What kind of module a parameter belongs to, by the names that Transformers gives: for tables only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

ATTENTION, MLP, EMBEDDING, HEAD, NORM, OTHER = KINDS = ("attention", "mlp", "embedding", "head", "norm", "other")

_EMBEDDINGS = frozenset({"wte", "wpe"})
_HEADS = frozenset({"lm_head", "embed_out", "output_projection"})
_PARTS = (
    (ATTENTION, ("attn", "attention")),
    (MLP, ("mlp", "feed_forward", "ffn", "experts", "block_sparse_moe")),
)


class KindRow(NamedTuple):
    """What a skill holds in the modules of one kind; `share` is of the squared norm."""

    kind: str
    tensors: int
    parameters: int
    norm: float
    share: float


Value = TypeVar("Value")


def module_kind(name: str) -> str:
    """Return one of `KINDS` for a parameter's name: `model.layers.0.mlp.up_proj.weight` is of the kind `mlp`."""
    parts = name.lower().split(".")
    module = parts[-2] if len(parts) > 1 else parts[-1]
    if module in _HEADS:
        return HEAD
    if module in _EMBEDDINGS or "embed" in module:
        return EMBEDDING
    if "norm" in module or module.startswith("ln_") or module.endswith("_ln"):
        return NORM
    for kind, words in _PARTS:
        if any(word in part for part in parts for word in words):
            return kind
    return OTHER


def by_kind(values: Mapping[str, Value]) -> dict[str, list[Value]]:
    """Return the values of parameters by the kind of their module, in the order of `KINDS`."""
    grouped: dict[str, list[Value]] = {kind: [] for kind in KINDS}
    for name, value in values.items():
        grouped[module_kind(name)].append(value)
    return {kind: found for kind, found in grouped.items() if found}


def kind_rows(tensors: Mapping[str, tuple[tuple[int, ...], float]]) -> list[KindRow]:
    """Return a row per kind of module of (shape, Frobenius norm) by parameter name."""
    total = root_of_squares(norm for _, norm in tensors.values())
    rows = []
    for kind, found in by_kind(tensors).items():
        norm = root_of_squares(norm for _, norm in found)
        parameters = sum(math.prod(shape) for shape, _ in found)
        rows.append(KindRow(kind, len(found), parameters, norm, (norm / total) ** 2 if total else 0.0))
    return rows


def root_of_squares(values: Iterable[float]) -> float:
    """Return sqrt(Σ x²), summed exactly: the Frobenius norm of tensors from the norms of its parts."""
    return math.sqrt(math.fsum(value * value for value in values))
