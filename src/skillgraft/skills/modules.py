"""Kinds of modules, read off a parameter's name, and a skill's norms by kind."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

KINDS = ("attention", "mlp", "embedding", "head", "norm", "other")

_PATTERNS = (
    ("norm", re.compile(r"norm|(^|\.)ln_")),
    ("head", re.compile(r"(^|\.)(lm_head|embed_out|output)\.")),
    ("embedding", re.compile(r"embed|(^|\.)wte\.|(^|\.)wpe\.")),
    ("attention", re.compile(r"attn|attention")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|expert|moe")),
)


class KindRow(NamedTuple):
    """Tensors, parameters and norm of a skill in the modules of one kind; `share` is of the squared norm."""

    kind: str
    tensors: int
    parameters: int
    norm: float
    share: float


Value = TypeVar("Value")


def module_kind(name: str) -> str:
    """Return one of `KINDS` for a parameter: `norm` before others, since attention contains norms too."""
    return next((kind for kind, pattern in _PATTERNS if pattern.search(name.lower())), "other")


def by_kind(values: Mapping[str, Value]) -> dict[str, list[Value]]:
    """Return the values of parameters by the kind of their module, in the order of `KINDS`."""
    grouped: dict[str, list[Value]] = {kind: [] for kind in KINDS}
    for name, value in values.items():
        grouped[module_kind(name)].append(value)
    return {kind: values_of_kind for kind, values_of_kind in grouped.items() if values_of_kind}


def kind_rows(tensors: Mapping[str, tuple[tuple[int, ...], float]]) -> list[KindRow]:
    """Return a row per kind of module of (shape, Frobenius norm) by parameter name."""
    total = root_of_squares(norm for _, norm in tensors.values())
    rows = []
    for kind, shapes_and_norms in by_kind(tensors).items():
        norm = root_of_squares(norm for _, norm in shapes_and_norms)
        parameters = sum(math.prod(shape) for shape, _ in shapes_and_norms)
        rows.append(KindRow(kind, len(shapes_and_norms), parameters, norm, (norm / total) ** 2 if total else 0.0))
    return rows


def root_of_squares(values: Iterable[float]) -> float:
    """Return sqrt(Σ x²), summed exactly: the Frobenius norm of tensors from the norms of its parts."""
    return math.sqrt(math.fsum(value * value for value in values))
