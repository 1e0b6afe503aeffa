"""Architecture facts of a config that tensor shapes don't show: head counts, RoPE, ties."""

from __future__ import annotations

from typing import Any

from skillgraft.checkpoint.layout import Layout
from skillgraft.skills.manifest import Architecture

LM_HEAD = "lm_head.weight"
COMPARED = ("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "tie_word_embeddings")


def architecture_facts(layout: Layout) -> Architecture:
    """Return the architecture facts of a checkpoint; None for what its config leaves open.

    What Transformers derives is derived: head_dim = hidden_size / heads, key-value heads = heads. A multimodal
    config's `text_config` counts where the top level says nothing.
    """
    text_config = layout.config.get("text_config")
    config: dict[str, Any] = {**(text_config if isinstance(text_config, dict) else {}), **layout.config}
    heads, hidden = _integer(config, "num_attention_heads"), _integer(config, "hidden_size")
    tied = config.get("tie_word_embeddings")
    if not isinstance(tied, bool):
        tied = False if LM_HEAD in layout.tensors else None
    return Architecture(
        model_type=config["model_type"] if isinstance(config.get("model_type"), str) else None,
        num_attention_heads=heads,
        num_key_value_heads=_integer(config, "num_key_value_heads") or heads,
        head_dim=_integer(config, "head_dim") or (hidden // heads if hidden and heads else None),
        hidden_size=hidden,
        vocab_size=_integer(config, "vocab_size"),
        tie_word_embeddings=tied,
        rope=_rope(config),
    )


def architecture_differences(got: Architecture, expected: Architecture) -> list[str]:
    """Return one text per fact that both sides state and that differs, such as `head_dim is 64, expected 32`."""
    pairs = {key: (getattr(got, key), getattr(expected, key)) for key in COMPARED}
    pairs |= {f"RoPE {key}": (got.rope[key], expected.rope[key]) for key in got.rope.keys() & expected.rope.keys()}
    return [
        f"{key} is {have!r}, expected {want!r}"
        for key, (have, want) in sorted(pairs.items())
        if have is not None and want is not None and have != want
    ]


def _integer(config: dict[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if type(value) is int else None


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return RoPE settings in the form of Transformers 5 (`rope_parameters`), also from older configs."""
    rope: dict[str, Any] = {}
    if config.get("rope_theta") is not None:
        # An older config that states the frequency and no scaling means the default type.
        rope = {"rope_theta": config["rope_theta"], "rope_type": "default"}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(key), dict):
            settings = dict(config[key])
            if "type" in settings:
                settings.setdefault("rope_type", settings.pop("type"))
            rope |= settings
    return {key: value for key, value in rope.items() if value is not None}
