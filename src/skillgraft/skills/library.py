"""The local library of skills: one folder of skill directories by name, read again each time.

An entry holds a skill's own files and, where it was pulled from a hub, `origin.json`. There is no index beside the
manifests that could disagree with them: listing reads those.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.provenance import base_of
from skillgraft.checkpoint.safe_read import read_json_object
from skillgraft.checkpoint.writer import atomic_directory, storage_error
from skillgraft.errors import (
    CheckpointError,
    MissingPathError,
    OutputExistsError,
    SkillgraftError,
    StorageError,
    did_you_mean,
)
from skillgraft.skills.card import card_text
from skillgraft.skills.manifest import MANIFEST_FILE, Manifest
from skillgraft.skills.names import library_home, library_names, shipped_skills
from skillgraft.skills.skill import CARD_FILE, WEIGHTS_FILE, Skill, load_skill
from skillgraft.support.atomic import atomic_write_json
from skillgraft.support.lock import exclusive_lock

CHECKED_FILES = (MANIFEST_FILE, WEIGHTS_FILE)
"""Files of a skill that are copied, sent and fetched; its card is written again from the manifest."""
SKILL_FILES = (*CHECKED_FILES, CARD_FILE)
ORIGIN_FILE = "origin.json"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""Names that Windows reserves for devices, with any extension."""


@dataclass(frozen=True)
class Entry:
    """A skill in the library; `problem` is why it can't be used, and then the rest is unknown."""

    name: str
    path: Path
    problem: str | None = None
    manifest: Manifest | None = None
    form: str | None = None
    fingerprint: str | None = None
    size_bytes: int = 0
    origin: dict[str, Any] | None = None


class Resolved(NamedTuple):
    """The directory that a text names, and a remark on the choice."""

    path: Path
    remark: str | None = None


def list_skills(base: str | None = None, domain: str | None = None) -> list[Entry]:
    """Return the library's entries by name, damaged ones with their problem.

    `base` keeps the skills of one base: its fingerprint or the beginning of it, its id, or a checkpoint's directory
    (its own fingerprint, or its base's by provenance). `domain` keeps those whose domain contains it, in any case.
    With a filter, damaged entries are left out.
    """
    entries = [read_entry(name) for name in library_names()]
    if base is not None:
        wanted = _bases(base)
        entries = [entry for entry in entries if entry.manifest and _has_base(entry.manifest, wanted)]
    if domain is not None:
        text = domain.casefold()
        entries = [e for e in entries if e.manifest and text in (e.manifest.domain or "").casefold()]
    return entries


def read_entry(name: str) -> Entry:
    """Read one entry; a damaged one is returned with its problem, not raised."""
    path = library_home() / name
    try:
        skill = load_skill(path)
        origin = read_json_object(path / ORIGIN_FILE, strict=True) if (path / ORIGIN_FILE).is_file() else None
        fingerprint = fingerprint_file(skill.weights_file)
    except SkillgraftError as error:
        return Entry(name, path, problem=str(error))
    except OSError as error:
        return Entry(name, path, problem=f"{path}: {error.strerror or error}")
    size = sum((path / file).stat().st_size for file in SKILL_FILES if (path / file).is_file())
    return Entry(name, path, None, skill.manifest, skill.form, fingerprint, size, origin)


def add_skill(skill: str | os.PathLike[str], name: str | None = None, origin: Mapping[str, Any] | None = None) -> Entry:
    """Copy a skill, a directory or a shipped one, into the library as `name` (default: the directory's) and return it.

    Manifest and tensors are copied, the card is written again from the manifest, and `origin` is kept beside them; the
    entry appears whole or not at all. Raises as `load_own_skill`, `OutputExistsError` when the name is taken or a skill
    with the same tensors is there already, and `CheckpointError` for an invalid name.
    """
    source = load_own_skill(skill)
    name = checked_name(name if name is not None else source.path.resolve().name)
    home = library_home()
    _make_home(home)
    with exclusive_lock(home / ".lock"):
        if os.path.lexists(home / name):
            raise OutputExistsError(
                f"the library {home} has a skill {name!r} already; give another name, or remove it first: "
                f"skillgraft skill remove {name}"
            )
        with atomic_directory(home / name, needed_bytes=source.weights_file.stat().st_size) as partial:
            for file in CHECKED_FILES:
                shutil.copyfile(source.path / file, partial / file)
            copy = load_skill(partial)
            (partial / CARD_FILE).write_text(card_text(copy.manifest), encoding="utf-8")
            _refuse_duplicate(fingerprint_file(copy.weights_file))
            if origin is not None:
                atomic_write_json(partial / ORIGIN_FILE, dict(origin))
    return read_entry(name)


def remove_skill(name: str) -> Path:
    """Take an entry, whole or damaged, out of the library and return where it was; `MissingPathError` for none."""
    names = library_names()
    path = library_home() / name
    if name not in names:
        raise MissingPathError(f"the library {library_home()} has no skill {name!r}{did_you_mean(name, names)}")
    doomed = path.parent / f".removed-{name}-{os.getpid()}"
    try:
        os.rename(path, doomed)  # gone at once for whoever lists; deleting takes its time
        if doomed.is_symlink():
            doomed.unlink()
        else:
            shutil.rmtree(doomed)
    except OSError as error:
        raise StorageError(f"{path}: can't be removed ({error.strerror}); check owner and mode") from error
    return path


def load_own_skill(skill: str | os.PathLike[str]) -> Skill:
    """Return the skill that `skill` means, to be copied or sent: its files must be its own.

    Raises as `resolve_skill` and `load_skill`, and `CheckpointError` for a file that is a link, or no regular file:
    what it leads to may be a secret of this machine.
    """
    path = resolve_skill(skill).path
    for name in SKILL_FILES:
        file = path / name
        if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
            what = f"a symbolic link to {os.readlink(file)}" if file.is_symlink() else "no regular file"
            raise CheckpointError(
                f"{file} is {what}, expected a file of the skill itself; nothing was copied or sent: put the skill's "
                "own file in its place"
            )
    return load_skill(path)


def find_skill(text: str | os.PathLike[str]) -> Resolved | None:
    """Return the directory that `text` means: a path that exists, else the library's or the shipped skill of that name.

    The path wins, with a remark if the library has that name too. None when there is neither; raises
    `MissingPathError` for an empty text.
    """
    if not str(text):
        raise MissingPathError(
            "the name of a skill is empty; expected a directory or a name that `skillgraft skill ls` shows, such as "
            "skills/squad-recall (. is this directory)"
        )
    path, name = Path(text), str(text)
    if os.path.lexists(path):
        known = _is_known(name)
        both = known and path.resolve() != (library_home() / name).resolve()
        remark = f"{name!r} is a directory here and a skill of the library; the directory was taken" if both else None
        return Resolved(path, remark)
    named = named_skill(name)
    return None if named is None else Resolved(named)


def named_skill(name: str) -> Path | None:
    """Return the directory of the library's skill of that name, else of the shipped one, else None."""
    return library_home() / name if _is_known(name) else shipped_skills().get(name)


def resolve_skill(text: str | os.PathLike[str]) -> Resolved:
    """Resolve a text as `find_skill` does, or raise `MissingPathError`."""
    resolved = find_skill(text)
    if resolved is not None:
        return resolved
    name = str(text)
    named = _NAME.fullmatch(name) is not None
    where = f", and no skill of that name in the library {library_home()}" if named else ""
    hint = did_you_mean(name, skill_names()) if named else ""
    raise MissingPathError(
        f"{name}: no such directory{where}; expected a skill ({MANIFEST_FILE}, {WEIGHTS_FILE}), a PEFT adapter, or a "
        f"name that `skillgraft skill ls` shows{hint}"
    )


def skill_names() -> list[str]:
    """Return the names of the library's and of the shipped skills."""
    return sorted({*library_names(), *shipped_skills()})


def checked_name(name: str) -> str:
    """Return a name that can be a folder's everywhere; `CheckpointError` for any other."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise CheckpointError(
            f"{name!r} is not a valid name for a skill; expected letters, digits, '.', '_' and '-', beginning with a "
            "letter or digit, at most 96 of them: give one, as in skillgraft skill add my-skill recall"
        )
    if _DEVICE.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is not a valid name for a skill: Windows reserves it for a device; give another, as in "
            "skillgraft skill add my-skill recall"
        )
    return name


def _is_known(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and name in library_names()


def _bases(text: str) -> tuple[str, ...]:
    """Return the ids and fingerprints by which a skill may name the base `text`."""
    path = Path(text)
    if not path.is_dir():
        return (text,)
    stated = base_of(path)
    return (fingerprint_checkpoint(path), *((stated["fingerprint"] or "",) if stated else ()))


def _has_base(manifest: Manifest, wanted: Collection[str]) -> bool:
    stated = manifest.base
    for text in filter(None, wanted):
        prefix = text if text.startswith("blake3:") else f"blake3:{text}"
        if text == stated.id or (len(prefix) > len("blake3:") + 3 and stated.fingerprint.startswith(prefix)):
            return True
    return False


def _refuse_duplicate(fingerprint: str) -> None:
    for other in list_skills():
        if other.fingerprint == fingerprint:
            raise OutputExistsError(
                f"the library has this skill already, as {other.name!r} (the same tensors, {fingerprint}); use that "
                f"name, or remove it first: skillgraft skill remove {other.name}"
            )


def _make_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / ".lock").touch()
    except OSError as error:
        raise storage_error(error, home) or StorageError(
            f"{home}: the library can't be written ({error.strerror}); set SKILLGRAFT_LIBRARY to another folder"
        ) from error
