"""Layer and projection of a tensor, read off its name: finer than `skills.modules`.

What this does not know more closely has the kind that it has there.
"""

from __future__ import annotations

import re

from skillgraft.skills.modules import module_kind

KINDS = (
    "q", "k", "v", "o", "qkv", "attention", "gate", "up", "down", "gate_up", "router", "mlp", "norm", "bias",
    "embedding", "head", "other",
)  # fmt: skip
"""All kinds, in the order of tables and maps."""

_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_BY_MODULE = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "out_proj": "o", "query": "q", "key": "k", "value": "v",
    "qkv_proj": "qkv", "c_attn": "qkv", "query_key_value": "qkv", "Wqkv": "qkv",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "gate_up_proj": "gate_up",
    "w1": "gate", "w3": "up", "w2": "down", "c_fc": "up", "fc1": "up", "fc2": "down",
    "dense_h_to_4h": "up", "dense_4h_to_h": "down",
    "embed_tokens": "embedding", "wte": "embedding", "wpe": "embedding", "word_embeddings": "embedding",
    "embed_in": "embedding", "lm_head": "head", "embed_out": "head", "router": "router",
}  # fmt: skip


def layer_of(name: str) -> int | None:
    """Return the number of the layer in a tensor's name; None for what is in no layer."""
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def kind_of(name: str) -> str:
    """Return the kind of module (see `KINDS`) that a tensor's name says."""
    parts = name.split(".")
    if parts[-1] == "bias":
        return "bias"
    modules = parts[:-1] if parts[-1] == "weight" else parts
    module = modules[-1] if modules else ""
    if module in _BY_MODULE:
        return _BY_MODULE[module]
    if module == "gate":  # of a mixture of experts
        return "router"
    coarse = module_kind(name)
    if module == "c_proj":
        return "o" if coarse == "attention" else "down"
    return coarse


def layer_groups(layers: int) -> list[tuple[int, int]]:
    """Return (first, last) of the early, middle and late third of the layers; fewer groups for fewer layers."""
    groups = min(3, layers)
    edges = [round(layers * place / groups) for place in range(groups + 1)] if groups else []
    return [(edges[place], edges[place + 1] - 1) for place in range(groups)]
