"""The errors for a user's mistake: each names the thing, what was got, what was expected, what to do.

All derive from `SkillgraftError`, which the command line prints as one message with exit code 2; each is also the
standard exception that a caller of the Python API would catch. Anything else that escapes is a defect of ours.
`section` is where `docs/reference/errors.md` says more.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class SkillgraftError(Exception):
    """Base of every error that is the input's fault or the machine's, never a defect of Skillgraft."""

    section: ClassVar[str] = "other"


class RecipeError(SkillgraftError, ValueError):
    """A recipe or a setting in it is wrong."""

    section = "recipe"


class DataError(SkillgraftError, ValueError):
    """Documents, questions or other data that are to be read are wrong."""

    section = "data"


class CheckpointError(SkillgraftError, ValueError):
    """A checkpoint directory is incomplete, damaged or of a kind that is refused."""

    section = "checkpoint"


class MissingPathError(SkillgraftError, FileNotFoundError):
    """A path that was named does not exist."""

    section = "missing-path"


class OutputExistsError(SkillgraftError, FileExistsError):
    """An output path exists already; nothing is ever overwritten."""

    section = "output-exists"


class CompatibilityError(SkillgraftError, ValueError):
    """Operands that cannot be combined: other names, shapes, tokenizer or base."""

    section = "compatibility"


class ExtensionError(SkillgraftError, ImportError):
    """An installed package's extension cannot be used: its name is taken, or it cannot be imported."""

    section = "extension"


class TrainingError(SkillgraftError, RuntimeError):
    """Training cannot give a meaningful result (zero trained tokens, a loss that is not finite)."""

    section = "training"


class StorageError(SkillgraftError, OSError):
    """The disk is full or a path cannot be written."""

    section = "storage"


class HubError(SkillgraftError, OSError):
    """A model hub cannot be reached, refuses, or sends what it should not."""

    section = "hub"


class EndpointError(SkillgraftError, OSError):
    """A model behind an endpoint cannot be reached, refuses, or answers nonsense."""

    section = "endpoint"


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put what an error is about, such as `stages.sft`, before its message."""
    try:
        yield
    except SkillgraftError as error:
        raise type(error)(f"{where}: {error}") from error


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` is most likely meant to be, None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'? available: a, b` for an unknown `name`, the closest known name first."""
    known = sorted(map(str, known))
    if not known:
        return "; there are none"
    close = closest(name, known)
    hint = f"; did you mean '{close}'?" if close else ";"
    return f"{hint} available: {', '.join(known)}"
