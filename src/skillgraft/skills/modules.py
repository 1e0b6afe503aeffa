"""What a skill holds by the kind of its modules: rows of a table from norms by parameter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from skillgraft.skills.module_kinds import KINDS, module_kind


class KindRow(NamedTuple):
    """What a skill holds in the modules of one kind; `share` is of the squared norm."""

    kind: str
    tensors: int
    parameters: int
    norm: float
    share: float


Value = TypeVar("Value")


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
