"""Extensions: stages, methods, rewards, adapters and domains that other installed packages add by entry points.

A package names its objects in its own `pyproject.toml`, and nothing of Skillgraft is touched:

    [project.entry-points."skillgraft.stages"]
    my_kind = "my_package.my_module:MY_KIND"

The package's version counts in the address of a stage that uses one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple, TypeVar

from skillgraft.errors import ExtensionError

GROUPS = ("stages", "methods", "rewards", "adapters", "domains")
"""Groups that can be extended; the entry-point group of each is `skillgraft.<name>`."""

T = TypeVar("T")


class Extension(NamedTuple):
    """One entry point of an installed package."""

    group: str
    name: str
    package: str
    version: str


@functools.cache
def _entries(group: str) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=f"skillgraft.{group}"), key=lambda entry: (entry.name, entry.value)))


def with_extensions(group: str, builtin: Mapping[str, T]) -> dict[str, T]:
    """Return the built-in objects of a group with those of installed packages, by name.

    Raises:
        ExtensionError: two have one name, or one cannot be imported; the message names the packages.
    """
    merged = dict(builtin)
    for entry in _entries(group):
        if entry.name in merged:
            raise ExtensionError(f"{_said(entry)}: {group} '{entry.name}' is {_taken(group, entry)}; {_REMEDY}")
        merged[entry.name] = _load(entry)
    return merged


_REMEDY = "uninstall or update the package (`skillgraft doctor` lists all extensions)"


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except Exception as error:  # another package's code fails in any way it likes
        raise ExtensionError(
            f"{_said(entry)}: {entry.value} cannot be imported: {type(error).__name__}: {error}; {_REMEDY}"
        ) from error


def _said(entry: EntryPoint) -> str:
    package, version = _package(entry)
    return f"extension {package} {version}"


def _package(entry: EntryPoint) -> tuple[str, str]:
    return (entry.dist.name, entry.dist.version) if entry.dist is not None else ("?", "?")


def _taken(group: str, entry: EntryPoint) -> str:
    others = [other for other in _entries(group) if other.name == entry.name and other != entry]
    return f"also in {_said(others[0])}" if others else "built in"


def origin(group: str, name: str) -> str:
    """Return `package==version` of what an extension brought, empty for what is built in."""
    entry_point = next((entry for entry in _entries(group) if entry.name == name), None)
    return "" if entry_point is None else "==".join(_package(entry_point))


def list_extensions(group: str) -> list[Extension]:
    """Return the extensions of a group that are installed, without importing them."""
    return [Extension(group, entry.name, *_package(entry)) for entry in _entries(group)]
