"""Styles of rendering: prompts in files, each with a version. Loads no torch.

A prompt file is YAML with `version`, `makes` (`text`, or `questions` with answers), `prompt` with the places `{title}`
and `{text}`, and for questions `kinds`: name -> a sentence that takes the place `{kind}`, each kind asked for apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillgraft.errors import DataError, MissingPathError, RecipeError, did_you_mean
from skillgraft.support.yaml_file import read_yaml

PROMPTS = Path(__file__).with_name("prompts")
"""The prompts that come with Skillgraft."""


@dataclass(frozen=True)
class Style:
    """One way to render a passage; `kinds` maps each kind of question to its sentence, empty for texts."""

    name: str
    version: int
    prompt: str
    kinds: dict[str, str]

    @property
    def makes_questions(self) -> bool:
        """Whether questions with answers are asked for, rather than text."""
        return bool(self.kinds)

    def ask(self, title: str, text: str, kind: str = "") -> str:
        """Return the prompt for a passage; braces in title and text stand for themselves."""
        places = {"title": title or "its subject", "text": text, "kind": self.kinds.get(kind, "")}
        return re.sub(r"\{(title|text|kind)\}", lambda place: places[place[1]], self.prompt.strip())


def read_styles(names: list[str], folder: Path | None = None) -> list[Style]:
    """Return the styles called `names`, those in `folder` before those that come with Skillgraft.

    Raises:
        MissingPathError: there is no such folder.
        RecipeError: no such style.
        DataError: a prompt file that is not as described above.
    """
    if folder is not None and not folder.is_dir():
        raise MissingPathError(f"prompts: {folder} is not a directory; expected a folder of prompt files, NAME.yaml")
    files = {file.stem: file for place in (PROMPTS, folder) if place for file in sorted(place.glob("*.yaml"))}
    for name in names:
        if name not in files:
            raise RecipeError(f"styles: '{name}' is not a style{did_you_mean(name, files)}")
    return [_read(files[name]) for name in names]


def _read(file: Path) -> Style:
    data: dict[str, Any] = read_yaml(file, "prompt file", "version, makes, prompt")
    makes, prompt, kinds = data.get("makes"), data.get("prompt"), data.get("kinds", {})
    if type(data.get("version")) is not int or makes not in {"text", "questions"} or not isinstance(prompt, str):
        raise DataError(f"{file}: expected version (a number), makes (text or questions) and prompt")
    if "{text}" not in prompt or ("{kind}" in prompt) != (makes == "questions"):
        raise DataError(f"{file}: the prompt must hold {{text}}, and {{kind}} where it makes questions and only there")
    if unknown := sorted(set(data) - {"version", "makes", "prompt", "kinds"}):
        raise DataError(f"{file}: unknown key '{unknown[0]}'; expected version, makes, prompt, kinds")
    named = isinstance(kinds, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in kinds.items())
    if not named or bool(kinds) != (makes == "questions"):
        raise DataError(f"{file}: 'kinds' maps names to sentences, and stands where the prompt makes questions")
    return Style(file.stem, data["version"], prompt, kinds)
