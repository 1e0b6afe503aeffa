"""Reading the members of a JSON object one by one, and showing any value in a message, whatever its size.

Memory follows what is kept of the members, not what the text could blow up to, and no name occurs twice.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable
from typing import Any, TypeVar

Value = TypeVar("Value")

MAX_DEPTH = 64

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = json.JSONDecoder()
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = 200
_REPR.maxlist = 8


def shown(value: object) -> str:
    """Return the representation of a JSON value, cut where it is long or deep."""
    return _REPR.repr(value)


def read_members(
    text: str, position: int, read_value: Callable[[str, int], tuple[Value, int]]
) -> tuple[dict[str, Value], int]:
    """Return the members of the object that begins at `position`, and the position after it and the space behind it.

    `read_value` gets a member's name and where its value begins, and returns the value and where it ends. Raises
    `ValueError` for anything but an object and for a name that occurs twice.
    """
    members: dict[str, Value] = {}
    position = _after(text, position, "{")
    if text.startswith("}", position):
        return members, _after(text, position, "}")
    while True:
        if not text.startswith('"', position):
            raise ValueError(f"expected a name in quotes at character {position}")
        name, position = _STRING.raw_decode(text, position)
        if name in members:
            raise ValueError(_twice(name))
        members[name], position = read_value(name, _after(text, _skip(text, position), ":"))
        position = _skip(text, position)
        if text.startswith("}", position):
            return members, _after(text, position, "}")
        position = _after(text, position, ",")


def refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict (an `object_pairs_hook`); `ValueError` for a name that occurs twice."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(_twice(name))
        members[name] = value
    return members


def refuse_odd_values(value: object) -> None:
    """Raise `ValueError`, naming the place, for what parsed as JSON and cannot be written or shown as JSON.

    These are NaN and infinity (also as 1e999), and lists and objects that are nested deeper than `MAX_DEPTH`.
    """
    waiting: list[tuple[str, object, int]] = [("", value, 0)]
    while waiting:
        where, each, depth = waiting.pop()
        if isinstance(each, float) and not math.isfinite(each):
            raise ValueError(f"{shown(where)} is {each}, expected a finite number")
        if isinstance(each, dict | list):
            if depth == MAX_DEPTH:
                raise ValueError(f"{shown(where)} is nested deeper than {MAX_DEPTH} levels")
            members = each.items() if isinstance(each, dict) else enumerate(each)
            waiting += [(f"{where[:200]}.{name}" if where else str(name), item, depth + 1) for name, item in members]


def _twice(name: str) -> str:
    return f"it names {shown(name)} twice"


def _after(text: str, position: int, mark: str) -> int:
    if not text.startswith(mark, position):
        raise ValueError(f"expected {mark!r} at character {position}")
    return _skip(text, position + 1)


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return found.end() if found else position
