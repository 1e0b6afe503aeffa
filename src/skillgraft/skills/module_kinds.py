"""Which kind of module a parameter belongs to, by its name in the checkpoint."""

from __future__ import annotations

import re

KINDS = ("attention", "mlp", "embedding", "head", "norm", "other")

_PATTERNS = (
    ("norm", re.compile(r"norm|(^|\.)ln_")),
    ("head", re.compile(r"(^|\.)(lm_head|embed_out|output)\.")),
    ("embedding", re.compile(r"embed|(^|\.)wte\.|(^|\.)wpe\.")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|expert|moe")),
)


def module_kind(name: str) -> str:
    """Return one of `KINDS` for a parameter: `norm` before others, since norms stand inside attention too."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name.lower())), "other")
