"""The progress callback that everything slow takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

NO_METRICS: Mapping[str, float] = MappingProxyType({})


class Progress(Protocol):
    """Called with what is done and what there is in all, of one unit, and the latest metrics where there are any."""

    def __call__(self, done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, /) -> None:
        """Show the progress."""


def silent(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, /) -> None:
    """Show nothing: the default where a callback is optional."""
