"""Log of the trials: each is a line that is written before the next one begins, so a kill costs one trial."""

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

LOG_FILE = "trials.jsonl"
SETTINGS_FILE = "tuning.json"


@dataclass(frozen=True)
class Trial:
    """One scored candidate: `score` with its 95% interval over `n` questions, None where it was not finite."""

    trial: int
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
    """The trials so far and the open file of them."""

    def __init__(self, file: IO[str], trials: list[Trial]) -> None:
        self._file, self.trials = file, trials

    def add(self, trial: Trial) -> None:
        """Append a trial and synchronise it to the disk."""
        self._file.write(json.dumps(asdict(trial), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.trials.append(trial)


@contextmanager
def open_log(directory: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    """Yield the log in `directory`, a new one or that of a tuning run with the same settings.

    Raises `OutputExistsError` for a directory that holds something else, naming the setting that differs,
    `BusyOutputError` when another process is at it, and `CheckpointError` for a damaged log.
    """
    file = directory / SETTINGS_FILE
    if os.path.lexists(directory) and not file.is_file() and (not directory.is_dir() or any(directory.iterdir())):
        raise OutputExistsError(
            f"{directory} exists already and holds no tuning run; choose another output or delete it"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = (directory / LOG_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{directory} cannot be written: {error.strerror}; choose another output") from error
    with handle:
        lock_file(handle, BusyOutputError(f"{directory}: another process is tuning there; wait for it or stop it"))
        if file.is_file():
            _check_settings(directory, read_json_object(file), json.loads(json.dumps(settings)))
        else:
            atomic_write_json(file, settings)
        try:
            yield Log(handle, _read(directory / LOG_FILE, handle))
        except OSError as error:
            raise storage_error(error, directory) or error from error


def _check_settings(directory: Path, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    for key in {**before, **settings}:
        if before.get(key) != settings.get(key):
            raise OutputExistsError(
                f"{directory} holds another tuning run: {key} was {before.get(key)!r} and is {settings.get(key)!r} "
                "now; choose another output, or resume with the same settings (more --trials are fine)"
            )


def _read(path: Path, handle: IO[str]) -> list[Trial]:
    """Return the trials of the file; a last line that a kill cut off is removed from it."""
    handle.seek(0)
    text = handle.read()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        handle.truncate(len(whole.encode()))
    trials = []
    for number, line in enumerate(whole.splitlines()):
        try:
            trial = Trial(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{path}, line {number + 1}: no trial ({error}); the log is damaged") from error
        if trial.trial != number:
            raise CheckpointError(
                f"{path}, line {number + 1}: trial {trial.trial}, expected {number}; the log is damaged"
            )
        trials.append(trial)
    return trials
