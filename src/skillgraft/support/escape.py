"""Untrusted text made harmless to look at: control characters become visible symbols, lengths become bounded.

A model's answer may hold anything: NUL, terminal escape sequences, bidirectional overrides that reorder the page
around them, half a surrogate pair, a megabyte. Nothing is dropped silently: each such character is shown as a symbol,
and a cut says how long the text was. Turning text into HTML is not done here but by the templates' autoescaping.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TEXT_CHARACTERS = 600
NAME_CHARACTERS = 160
NAMES = (
    "title",
    "label",
    "row",
    "against",
    "on",
    "one",
    "other",
    "evaluation",
    "model",
    "stage",
    "name",
    "kind",
    "key",
    "metric",
    "form",
    "skillgraft_version",
)
CHARACTERS = {  # by the key that holds the text; TEXT_CHARACTERS for every other one
    **dict.fromkeys(NAMES, NAME_CHARACTERS),
    "recipe_yaml": 60_000,
    "command": 4_000,
    "question": 2_000,
}

_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and newline
    "\u2028\u2029\u202a-\u202e\u2066-\u2069"  # line separators; bidirectional embeddings, overrides, isolates
    "\ud800-\udfff\ufeff\ufff9-\ufffb\ufffe\uffff]"  # half surrogate pairs, invisible and non-characters
)


def escape(text: str, characters: int = TEXT_CHARACTERS) -> str:
    """Return `text` with harmful characters as symbols like ⟨U+202E⟩, cut to about `characters` characters."""
    length = len(text)
    if length > characters:
        text = text[:characters]
    escaped = _HARMFUL.sub(_symbol, text.replace("\r\n", "\n"))
    return escaped if length <= characters else f"{escaped.rstrip()}… ({length:,} characters)"


def escape_line(text: str, characters: int = TEXT_CHARACTERS) -> str:
    """Return `escape(text)` on one line, for names and for the terminal."""
    return " ".join(escape(text, characters).split())


def escape_tree(value: Any, key: str = "") -> Any:
    """Return a copy of JSON data in which every string, dictionary keys included, went through `escape`."""
    if isinstance(value, str):
        return escape(value, CHARACTERS.get(key, TEXT_CHARACTERS))
    if isinstance(value, Mapping):
        return {escape(str(name)): escape_tree(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [escape_tree(item, key) for item in value]
    return value


def _symbol(match: re.Match[str]) -> str:
    return f"⟨U+{ord(match.group()):04X}⟩"
