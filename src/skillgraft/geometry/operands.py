"""Operands of a comparison as a user writes them: `DIR`, `NAME=DIR`, `GROUP/NAME=DIR`, and `DIR:DIR` for a difference.

For the DIR of a skill its name in the library, or a shipped skill's, will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skillgraft.adapters.peft_file import is_adapter
from skillgraft.checkpoint.layout import CONFIG_FILE, require_directory
from skillgraft.errors import RecipeError
from skillgraft.skills.library import find_skill
from skillgraft.skills.manifest import MANIFEST_FILE

CHECKPOINT, DIFFERENCE, ADAPTER, SKILL = "checkpoint", "difference", "adapter", "skill"
GROUPS = {CHECKPOINT: "fine-tune", DIFFERENCE: "skill", ADAPTER: "adapter", SKILL: "skill"}
"""The group of an operand that names none, by its kind: pairs of groups are summed up together."""

LABEL_CHARACTERS = 60


@dataclass(frozen=True)
class VectorSpec:
    """One vector: `path` less the base (checkpoint), `path` less `minus` (difference), or `path` as it is.

    `remark` is what there is to say of the choice of `path`.
    """

    label: str
    group: str
    kind: str
    path: Path
    minus: Path | None = None
    remark: str | None = None


def parse_operands(texts: Sequence[str | VectorSpec]) -> list[VectorSpec]:
    """Return the operands; `RecipeError` for fewer than two, an empty or overlong label, or one that is given twice.

    A text that is an existing directory is taken as that, whatever = and : it holds. Raises `MissingPathError` for a
    directory that does not exist.
    """
    if len(texts) < 2:
        got = f"only {texts[0]!r}" if texts else "nothing"
        raise RecipeError(f"compare got {got}; expected two operands at least: skillgraft compare A B --base BASE")
    operands = [text if isinstance(text, VectorSpec) else _parse(text) for text in texts]
    for place, operand in enumerate(operands):
        for other in operands[:place]:
            if other.label == operand.label:
                raise RecipeError(
                    f"two operands are called {operand.label!r} ({other.path} and {operand.path}); expected a label "
                    f"for each: NAME={operand.path}"
                )
    return operands


def _parse(text: str) -> VectorSpec:
    label, rest = "", text
    if not _is_directory(text) and "=" in text:
        label, _, rest = text.partition("=")
        if not label.strip():
            raise RecipeError(f"operand {text!r} has an empty label; expected NAME=DIR, or DIR alone")
    minus = None
    if not _is_directory(rest) and ":" in rest:
        rest, _, second = rest.partition(":")
        if not rest or not second:
            raise RecipeError(f"operand {text!r} lacks one side of the difference; expected DIR:DIR, such as rl:sft")
        minus = require_directory(Path(second).expanduser())
    if not rest:
        raise RecipeError(f"operand {text!r} names no directory; expected DIR or NAME=DIR")
    skill = find_skill(rest)
    path = require_directory(skill.path if skill else Path(rest).expanduser())
    kind = DIFFERENCE if minus is not None else _kind(path)
    group, slash, name = label.partition("/") if label else ("", "", "")
    if not slash:
        group, name = GROUPS[kind], label or _folder(path) + (f":{_folder(minus)}" if minus is not None else "")
    for part in (group, name):
        if not part.strip() or not part.isprintable() or len(part) > LABEL_CHARACTERS:
            raise RecipeError(
                f"operand {text!r}: the label {part[:LABEL_CHARACTERS]!r} is empty, longer than {LABEL_CHARACTERS} "
                "characters or cannot be printed; expected NAME=DIR or GROUP/NAME=DIR"
            )
    return VectorSpec(name, group, kind, path, minus, skill.remark if skill else None)


def _is_directory(text: str) -> bool:
    return "\0" not in text and Path(text).is_dir()


def _folder(path: Path) -> str:
    return path.resolve().name


def _kind(path: Path) -> str:
    if (path / MANIFEST_FILE).is_file():
        return SKILL
    return ADAPTER if is_adapter(path) and not (path / CONFIG_FILE).is_file() else CHECKPOINT
