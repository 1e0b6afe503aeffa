"""Values of a library's configuration class: each argument's type as its dataclass states it. Loads no torch."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from skillgraft.errors import RecipeError

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
_NAMES |= {list: "a list", dict: "a mapping", tuple: "a list"}


def check_types(where: str, config: type[Any], given: Mapping[str, Any], also: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for an argument in `given` of another type than the dataclass `config` states.

    `also` maps arguments to a type that they may have beside the stated one.
    """
    hints = typing.get_type_hints(config)
    for key, value in given.items():
        hint = typing.Union[hints[key], also[key]] if key in also else hints[key]  # noqa: UP007
        if not _fits(value, hint):
            raise RecipeError(f"{where}: {key} is {value!r}, expected {_named(hint)}{_hint(value, hint)}")


def _choices(hint: Any) -> list[Any]:
    """Return the types that a value may have; a mapping may not be given as the text of one."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kinds = [kind for each in typing.get_args(hint) for kind in _choices(each)]
        mapping = any(typing.get_origin(kind) is dict or kind is dict for kind in kinds)
        return [kind for kind in kinds if not (mapping and kind is str)]
    return [hint]


def _fits(value: Any, hint: Any) -> bool:
    return any(_is_one(value, kind) for kind in _choices(hint))


def _is_one(value: Any, kind: Any) -> bool:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is Any:
        return True
    if origin is typing.Literal:
        return any(value == each and type(value) is type(each) for each in inner)
    if origin in (int, float):
        return isinstance(value, int if origin is int else int | float) and not isinstance(value, bool)
    if origin is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value if inner)
    if origin is tuple:
        whole = isinstance(value, list | tuple) and len(value) == len(inner)
        return whole and all(_fits(each, one) for each, one in zip(value, inner, strict=True))
    return isinstance(origin, type) and isinstance(value, origin)


def _named(hint: Any) -> str:
    names = []
    for kind in _choices(hint):
        origin = typing.get_origin(kind) or kind
        if origin is typing.Literal:
            names += [repr(each) for each in typing.get_args(kind)]
        elif not (isinstance(origin, type) and (issubclass(origin, enum.Enum) or dataclasses.is_dataclass(origin))):
            names.append(_NAMES.get(origin, str(kind)))
    return " or ".join(dict.fromkeys(names))


def _hint(value: Any, hint: Any) -> str:
    if isinstance(value, bool) and _fits("", hint):
        return "; YAML reads yes, no, on and off as true and false: put the word in quotes"
    return ""


def number_hint(text: str) -> str:
    """Return what YAML would read as the number that `text` is meant to be, as a hint; nothing where it is none."""
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            written = repr(number)
            return f"; YAML reads {text} as text: {written if '.' in written else written.replace('e', '.0e')}"
    return ""
