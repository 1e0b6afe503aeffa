"""Outputs that are complete or absent: a temporary sibling directory that is renamed at the end."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skillgraft.errors import OutputExistsError, SkillgraftError, StorageError
from skillgraft.support.atomic import synchronise
from skillgraft.support.lock import exclusive_lock

_RESUMABLE = "partial-of-"

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EINVAL})
# Libraries wrap the system's error in exceptions of their own; only the text is left of it.
_FULL_TEXTS = ("no space left on device", "os error 28", "disk quota exceeded", "file too large", "os error 27")


class BusyOutputError(StorageError):
    """Another process is writing the same output."""


@contextmanager
def atomic_directory(out: str | os.PathLike[str], *, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a temporary sibling of `out` to write into; rename it to `out` when the block ends without exception.

    The sibling is `.<name>.partial-<pid>`; after any exception (an interrupt too) it is removed and `out` does not
    exist. What dead processes left behind for the same name is removed first. Before the rename everything is
    synchronised to the disk. `needed_bytes`, where known, is checked before the block starts.

    Raises `OutputExistsError` when `out` exists (nothing is overwritten) and `StorageError` when the disk is full or
    the path can't be written, also where that happens inside the block.
    """
    out = Path(os.path.abspath(out))
    if os.path.lexists(out):
        raise _exists_error(out)
    temporary = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        _make_parent(out)
        _remove_stale(out)
        check_free_space(out, needed_bytes)
        temporary.mkdir()
        yield temporary
        _synchronise_all(temporary)
        _rename(temporary, out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        wrapped = storage_error(error, out, needed_bytes)
        if wrapped is not None:
            raise wrapped from error
        raise


def check_free_space(path: str | os.PathLike[str], needed_bytes: int) -> None:
    """Raise `StorageError` when the file system of `path` (which need not exist) has less than `needed_bytes` free."""
    existing = Path(os.path.abspath(path))
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise StorageError(
            f"{path}: {needed_bytes} bytes are needed, {free} are free; free some space or write to another disk"
        )


def _make_parent(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(f"{out}: {error.filename} is a file, expected a directory; choose another output") from error


def _exists_error(out: Path) -> OutputExistsError:
    return OutputExistsError(f"{out} exists already and nothing is overwritten; choose another output or delete it")


def _rename(temporary: Path, out: Path) -> None:
    if os.path.lexists(out):
        raise _exists_error(out)
    os.rename(temporary, out)
    synchronise(out.parent)


def _synchronise_all(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            synchronise(Path(folder) / name)
        synchronise(Path(folder))


def _remove_stale(out: Path) -> None:
    """Remove the temporary directories for `out` whose process is gone, and one that carries our own id."""
    prefix = f".{out.name}.partial-"
    for entry in out.parent.iterdir():
        pid = entry.name.removeprefix(prefix)
        if not entry.name.startswith(prefix) or not pid.isdecimal():
            continue
        # Our own id can only be the leftover of an earlier process: in a container ids repeat.
        if int(pid) == os.getpid() or not _is_running(int(pid)):
            shutil.rmtree(entry, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def storage_error(error: BaseException, out: Path, needed_bytes: int = 0) -> StorageError | None:
    """Return `error` as a `StorageError` about `out` if it means a full disk or an `out` that can't be written."""
    if isinstance(error, SkillgraftError) or not isinstance(error, Exception):
        return None
    code = error.errno if isinstance(error, OSError) else None
    if code in _FULL or (code is None and any(text in str(error).lower() for text in _FULL_TEXTS)):
        needed = f"; {needed_bytes} bytes are needed" if needed_bytes else ""
        if code == errno.EFBIG or "file too large" in str(error).lower():
            remedy = "raise the limit (ulimit -f) or write to another disk"
            return StorageError(f"{out}: a file would be larger than is allowed here ({error}){needed}; {remedy}")
        return StorageError(f"{out}: the disk is full ({error}){needed}; free some space or write to another disk")
    # Creating a file in a folder such as /proc fails with "no such file".
    ours = isinstance(error, OSError) and str(error.filename).startswith(str(out.parent / f".{out.name}."))
    if isinstance(error, OSError) and (code in _FORBIDDEN or ours):
        return StorageError(f"{error.filename or out}: {error.strerror} while writing {out}; choose another output")
    return None


@contextmanager
def resumable_directory(
    out: str | os.PathLike[str], key: str, *, needed_bytes: int = 0, durable: bool = False
) -> Iterator[Path]:
    """Yield a temporary sibling of `out` as `atomic_directory` does, one that a killed process left for the same work.

    `key` is a hash of everything that decides the content: only a sibling with the same key is resumed; others for
    `out` are removed. After an exception nothing stays; after a kill the sibling does. With `durable` all is
    synchronised to the disk before the rename, which guards against a power failure too. One process at a time works
    for an output: it holds the lock of `.<name>.lock` until `out` is there.

    Raises as `atomic_directory`, and `BusyOutputError` when another process is writing the same output.
    """
    out = Path(os.path.abspath(out))
    if os.path.lexists(out):
        raise _exists_error(out)
    temporary = out.parent / f".{out.name}.{_RESUMABLE}{key[:16]}"
    busy = BusyOutputError(f"{out}: another process is writing it; wait for it, or choose another output")
    try:
        _make_parent(out)
        with exclusive_lock(out.parent / f".{out.name}.lock", busy, remove=True):
            try:
                if os.path.lexists(out):
                    raise _exists_error(out)
                _remove_stale(out)
                _remove_other_work(out, temporary)
                temporary.mkdir(exist_ok=True)
                check_free_space(out, max(0, needed_bytes - _size(temporary)))
                yield temporary
                if durable:
                    _synchronise_all(temporary)
                _rename(temporary, out)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
    except BaseException as error:
        wrapped = storage_error(error, out, needed_bytes)
        if wrapped is not None:
            raise wrapped from error
        raise


def _size(directory: Path) -> int:
    return sum(entry.stat().st_size for entry in directory.rglob("*") if entry.is_file())


def _remove_other_work(out: Path, own: Path) -> None:
    """Remove what killed processes left behind of other work for the same output, whose lock is held."""
    prefix = f".{out.name}.{_RESUMABLE}"
    for entry in out.parent.iterdir():
        if entry.name.startswith(prefix) and entry != own:
            shutil.rmtree(entry, ignore_errors=True)
