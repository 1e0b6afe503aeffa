"""The verbs on skills as artefacts; each has a module of its own."""

from __future__ import annotations

from collections.abc import Callable

from skillgraft.cli.pack import pack

VERBS: list[tuple[str, Callable[..., None], str]] = [
    ("pack", pack, "skillgraft pack skills/squad-recall --form packed --budget 1MB -o small-skill"),
]
