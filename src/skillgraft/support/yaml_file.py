"""Reading a YAML file that a user wrote: one error for anything wrong with it, including a repeated key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from skillgraft.errors import MissingPathError, RecipeError


class _Loader(yaml.SafeLoader):
    """The safe loader, without its silence about a key that overwrites an earlier one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, Any] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node)
            if key in seen:
                first = seen[key].line + 1
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key {key!r} is repeated, in lines {first} and {key_node.start_mark.line + 1}; keep one",
                )
            seen[key] = key_node.start_mark
        return super().construct_mapping(node, deep)


def read_yaml(file: Path, what: str, keys: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; `what` names it in errors and `keys` what it should hold.

    Raises `MissingPathError` for a file that is not there, and `RecipeError` for one that cannot be read, is not YAML,
    repeats a key in one mapping, or holds no mapping.
    """
    if not file.is_file():
        state = "is a directory" if file.is_dir() else "does not exist"
        raise MissingPathError(f"{what}: {file} {state}; expected a YAML file")
    try:
        data = yaml.load(file.read_bytes(), Loader=_Loader)  # bytes: it finds UTF-16 by its mark
    except OSError as error:
        raise RecipeError(f"{what}: {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RecipeError(f"{what}: {file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        got = "is empty" if data is None else f"holds a {type(data).__name__}"
        raise RecipeError(f"{what}: {file} {got}, expected a mapping with {keys}")
    check_plain(data, f"{what}: {file}")
    return data


def check_plain(
    value: Any, where: str, place: str = "", above: tuple[int, ...] = (), seen: set[int] | None = None
) -> None:
    """Raise `RecipeError` for what JSON has not: dates, bytes, sets, keys that are no text, an alias within itself."""
    seen = set() if seen is None else seen
    if isinstance(value, dict | list):
        if id(value) in above:
            raise RecipeError(f"{where}: '{place}' is an alias of what it stands in; write it out")
        if id(value) in seen:  # an alias of what was looked at
            return
        seen.add(id(value))
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        for key, entry in entries:
            if isinstance(value, dict) and not isinstance(key, str):
                inside = f" in '{place}'" if place else ""
                raise RecipeError(f"{where}: the key {key!r}{inside} is no text; put it in quotes")
            check_plain(entry, where, f"{place}.{key}" if place else str(key), (*above, id(value)), seen)
    elif value is not None and not isinstance(value, str | int | float):
        kind = {"date": "a date", "datetime": "a date"}.get(
            type(value).__name__, f"of YAML's type {type(value).__name__}"
        )
        raise RecipeError(
            f"{where}: '{place}' is {kind}, expected text, a number, a list or a mapping; put it in quotes"
        )
