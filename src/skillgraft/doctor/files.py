"""Memory, disk, what the file system under the runs can do, and the encoding of text."""

from __future__ import annotations

import locale
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skillgraft.checkpoint.default_model import DEFAULT_PARAMETERS
from skillgraft.doctor.findings import Finding
from skillgraft.doctor.processor import gib
from skillgraft.support.cache import cache_home
from skillgraft.support.lock import lock_file
from skillgraft.support.resources import Memory

if TYPE_CHECKING:
    from skillgraft.stages.costs import Needs

GRAFTED_MODELS = 4
"""Checkpoints that the quickstart writes beside the fine-tuned one: the grafted one and its controls."""
CACHE_BYTES = 6 * DEFAULT_PARAMETERS
"""The default model in float32, and what it is made from while that happens."""


def fine_tuning(adapt: Mapping[str, str] | None = None) -> Needs:
    """Return the cost of fine-tuning the default model."""
    from skillgraft.stages.costs import training_needs  # an extension that is broken is another check's to say

    return training_needs(DEFAULT_PARAMETERS, adapt)


def run_bytes() -> float:
    """Return the bytes that the quickstart writes."""
    return fine_tuning().disk + GRAFTED_MODELS * 4 * DEFAULT_PARAMETERS


def check_memory(memory: Memory) -> list[Finding]:
    """Compare the memory with what fine-tuning the default model takes."""
    full, lora = fine_tuning().memory, fine_tuning({"kind": "lora"}).memory
    free = "" if memory.available is None else f"{gib(memory.available)} available of "
    state = f"{free}{gib(memory.total)}{' (limit of the container)' if memory.limited else ''}"
    needed = f"fine-tuning the default model takes about {gib(full)}, with LoRA {gib(lora)}"
    if memory.total < lora:
        return [Finding("memory", "error", state, needed, "use a machine with more memory; merging needs little")]
    if memory.total < full:
        return [
            Finding(
                "memory", "warning", state, needed, "fine-tune with LoRA: `adapt: {kind: lora, r: 16}` in the sft stage"
            )
        ]
    if memory.available is not None and memory.available < full:
        return [Finding("memory", "warning", state, needed, "close other programs, or wait until they are done")]
    return [Finding("memory", "ok", state, needed)]


@dataclass(frozen=True)
class Disk:
    """A place that is written to: what for, its file system's free bytes, and the bytes needed there."""

    purpose: str
    path: Path
    device: int
    free: int
    needed: float


def inspect_disks(runs: Path) -> list[Disk]:
    """Return the places where runs, caches and temporary files go."""
    wanted = [
        ("runs", runs, run_bytes()),
        ("cache", cache_home(), CACHE_BYTES),
        ("temporary files", Path(tempfile.gettempdir()), DEFAULT_PARAMETERS),
    ]
    return [
        Disk(purpose, path.resolve(), (here := nearest(path)).stat().st_dev, shutil.disk_usage(here).free, needed)
        for purpose, path, needed in wanted
    ]


def nearest(path: Path) -> Path:
    """Return the path itself, or the closest folder above it that exists."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def check_disk(disks: Sequence[Disk]) -> list[Finding]:
    """Compare the free space with what the quickstart writes, places on the same file system together."""
    findings = []
    for device in dict.fromkeys(disk.device for disk in disks):
        here = [disk for disk in disks if disk.device == device]
        free, needed = here[0].free, sum(disk.needed for disk in here)
        text = f"{gib(free)} free for {', '.join(f'{disk.purpose} ({disk.path})' for disk in here)}"
        meaning = f"what the quickstart and the default model take there: about {gib(needed)}"
        if free < needed:
            remedy = "free some space, or name other places: --runs, SKILLGRAFT_CACHE, TMPDIR"
            findings.append(Finding("disk", "warning", text, meaning, remedy))
        else:
            findings.append(Finding("disk", "ok", text, meaning))
    return findings


ABILITIES = {
    "write": "create files",
    "lock": "lock a file against a second run",
    "rename": "rename a folder in one step",
    "link": "make symbolic links",
}
"""Operations that runs need of the file system, in the order in which they are tried."""


def inspect_files(runs: Path) -> tuple[Path, dict[str, str]]:
    """Return the folder that was tried and, for each ability, an empty text or why it is lacking. Leaves nothing."""
    place = nearest(runs)
    lacking: dict[str, str] = dict.fromkeys(ABILITIES, "was not tried")
    try:
        with tempfile.TemporaryDirectory(prefix=".skillgraft-doctor-", dir=place) as scratch:
            for ability, attempt in {"write": _write, "lock": _lock, "rename": _rename, "link": _link}.items():
                try:
                    attempt(Path(scratch))
                    lacking[ability] = ""
                except OSError as error:
                    lacking[ability] = error.strerror or str(error)
    except OSError as error:
        lacking["write"] = error.strerror or str(error)
    return place, lacking


def _write(folder: Path) -> None:
    with (folder / "file").open("w") as file:
        file.write("text")
        file.flush()
        os.fsync(file.fileno())


def _lock(folder: Path) -> None:
    busy = BlockingIOError()
    with (folder / "lock").open("w") as mine, (folder / "lock").open("w") as other:
        lock_file(mine, busy)
        try:
            lock_file(other, busy)
        except BlockingIOError:
            return
    raise OSError(0, "a lock that is held does not keep others out")


def _rename(folder: Path) -> None:
    (folder / "one").mkdir()
    (folder / "one" / "file").touch()
    (folder / "one").rename(folder / "other")
    (folder / "other" / "file").stat()


def _link(folder: Path) -> None:
    (folder / "link").symlink_to(folder, target_is_directory=True)


def check_files(inspected: tuple[Path, Mapping[str, str]]) -> list[Finding]:
    """Say whether runs can be kept there."""
    place, lacking = inspected
    wrong = [f"cannot {ABILITIES[ability]} ({why})" for ability, why in lacking.items() if why]
    if not wrong:
        return [
            Finding("files", "ok", f"{place}: writing, locking, renaming and linking work", "runs can be kept there")
        ]
    if lacking["write"]:
        wrong = wrong[:1]
    meaning = "runs there would stop, or two of them would write the same files"
    remedy = "keep runs on a local disk that you may write: --runs FOLDER"
    return [Finding("files", "error", f"{place}: {'; '.join(wrong)}", meaning, remedy)]


def inspect_text() -> dict[str, str]:
    """Return the encodings of files, file names and the terminal."""
    return {
        "files": locale.getpreferredencoding(False),
        "file names": sys.getfilesystemencoding(),
        "terminal": getattr(sys.stdout, "encoding", None) or "utf-8",
    }


def check_text(encodings: Mapping[str, str]) -> list[Finding]:
    """Say whether text is UTF-8 everywhere."""
    other = {what: name for what, name in encodings.items() if name.lower().replace("_", "-") not in {"utf-8", "utf8"}}
    if not other:
        return [Finding("text", "ok", "UTF-8", "documents, answers and symbols such as λ are kept as they are")]
    encodings_text = ", ".join(f"{what}: {name}" for what, name in other.items())
    meaning = "symbols such as λ, and documents in other scripts, end a run with an encoding error"
    return [Finding("text", "error", encodings_text, meaning, "export PYTHONUTF8=1, or a locale such as LANG=C.UTF-8")]
