"""The log of a search: every look is a line, kept before the next one begins, so that a kill costs one look."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from skillgraft.checkpoint.safe_read import read_json_object
from skillgraft.checkpoint.writer import BusyOutputError, storage_error
from skillgraft.errors import CheckpointError, OutputExistsError, StorageError
from skillgraft.support.atomic import atomic_write_json
from skillgraft.support.lock import lock_file

LIKELIHOOD = "answer_likelihood"
"""The smooth metric: see `evals.likelihood`."""

LOG_FILE = "looks.jsonl"
SETTINGS_FILE = "search.json"


@dataclass(frozen=True)
class Look:
    """One scored candidate: `score` with its 95% interval over `n` questions, None where it was no number."""

    look: int
    what: str
    point: list[float] | None
    values: dict[str, float]
    n: int
    score: float | None
    low: float | None
    high: float | None
    metrics: dict[str, float | None]
    seconds: float


class Log:
    """The looks so far and the open file of them."""

    def __init__(self, file: IO[str], looks: list[Look]) -> None:
        self._file, self.looks = file, looks

    def add(self, look: Look) -> None:
        """Append a look and synchronise it to the disk."""
        self._file.write(json.dumps(asdict(look), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.looks.append(look)


@contextmanager
def open_log(directory: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    """Yield the log in `directory`, a new one or that of a search with the same settings.

    Raises `OutputExistsError` for a directory that holds something else, naming the setting that differs,
    `BusyOutputError` when another process is at it, and `CheckpointError` for a damaged log.
    """
    file = directory / SETTINGS_FILE
    if os.path.lexists(directory) and not file.is_file() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputExistsError(f"{directory} exists already and holds no search; choose another output or delete it")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / LOG_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{directory} cannot be written: {error.strerror}; choose another output") from error
    with handle:
        lock_file(handle, BusyOutputError(f"{directory}: another process is searching there; wait for it or stop it"))
        if file.is_file():
            _check_settings(directory, read_json_object(file), json.loads(json.dumps(settings)))
        else:
            atomic_write_json(file, settings)
        try:
            yield Log(handle, _read(directory / LOG_FILE, handle))
        except OSError as error:
            raise storage_error(error, directory) or error from error


def _check_settings(directory: Path, kept: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for key in {**kept, **settings}:
        if kept.get(key) != settings.get(key):
            raise OutputExistsError(
                f"{directory} holds another search: {key} was {kept.get(key)!r} and is {settings.get(key)!r} now; "
                "choose another output, or go on with the same settings (more --trials are fine)"
            )


def _read(path: Path, handle: IO[str]) -> list[Look]:
    """Return the looks of the file; a last line that a kill cut off is removed from it."""
    handle.seek(0)
    text = handle.read()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        handle.truncate(len(whole.encode()))
    looks = []
    for number, line in enumerate(whole.splitlines()):
        try:
            look = Look(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path}, line {number + 1}: no look ({error}); the log is damaged") from error
        if look.look != number:
            raise CheckpointError(f"{path}, line {number + 1}: look {look.look}, expected {number}; the log is damaged")
        looks.append(look)
    return looks
