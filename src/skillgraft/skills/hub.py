"""Sharing skills on a model hub: manifest and tensors are checked before they go and before they count.

The card is never copied: it is written again from the manifest on either side.

The endpoint is `HF_ENDPOINT`'s, the token `HF_TOKEN`'s or that of the hub's own login; both are left to
huggingface_hub. Nothing else of a repository is downloaded, so a pickle in it is never even seen.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.checkpoint.fingerprint import fingerprint_file
from skillgraft.checkpoint.writer import storage_error
from skillgraft.errors import HubError, OutputExistsError, SkillgraftError
from skillgraft.skills.card import card_text
from skillgraft.skills.library import CHECKED_FILES, Entry, add_skill, checked_name, library_home, load_own_skill
from skillgraft.skills.skill import CARD_FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BUFFER_BYTES = 1 << 22


def push_skill(skill: str | os.PathLike[str], repository: str, *, private: bool = False) -> dict[str, Any]:
    """Upload a skill, by directory or name, to the model repository USER/REPO, made if there is none, as one commit.

    Manifest and tensors go as they are, with a card that is written again from the manifest. With `private` a new
    repository is private, and an existing public one is refused. Returns `repository`, `url` and `revision` (the
    commit). Raises as `load_own_skill`, and `HubError` for a wrong name, no network, no right to write, or a server
    that fails; the skill is checked before anything is sent.
    """
    from huggingface_hub import CommitOperationAdd

    source = load_own_skill(skill)
    _checked_repository(repository)
    with _hub(repository) as api:
        url = api.create_repo(repository, private=private, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise HubError(
                f"{repository} exists and is public; with --private nothing was uploaded: choose another name, or make "
                "it private on the hub first"
            )
        commit = api.create_commit(
            repository,
            [
                *(CommitOperationAdd(file, str(source.path / file)) for file in CHECKED_FILES),
                CommitOperationAdd(CARD_FILE, card_text(source.manifest).encode()),
            ],
            commit_message=f"Skill {source.path.resolve().name}",
        )
    return {"repository": repository, "url": str(url), "revision": commit.oid}


def pull_skill(repository: str, name: str | None = None, *, revision: str | None = None) -> Entry:
    """Download a skill of the hub into the local library as `name` (default: REPO) and return its entry.

    Manifest and tensors are downloaded, at one commit, and the card is written again from the manifest. Each file that
    the hub keeps a SHA-256 of is compared with it, and the skill is checked by `load_skill` before it appears.
    `origin.json` beside it records repository, endpoint, commit, and the SHA-256 and BLAKE3 of each downloaded file.

    Raises `HubError` (as `push_skill`; a repository without skill, a damaged download), as `load_skill`, and as
    `add_skill`.
    """
    _checked_repository(repository)
    name = checked_name(name if name is not None else repository.partition("/")[2])
    home = library_home()
    if os.path.lexists(home / name):  # at once, before anything is downloaded
        raise OutputExistsError(
            f"the library {home} has a skill {name!r} already; give another name: "
            f"skillgraft skill pull {repository} NAME"
        )
    with tempfile.TemporaryDirectory(prefix="skillgraft-pull-") as scratch:
        folder = Path(scratch) / name
        with _hub(repository) as api:
            commit, recorded = _listing(api, repository, revision)
            api.snapshot_download(
                repository, revision=commit, local_dir=folder, allow_patterns=sorted(recorded), max_workers=2
            )
        files = {file: _checked_file(folder / file, repository, sha256) for file, sha256 in recorded.items()}
        origin = {"repository": repository, "endpoint": api.endpoint, "revision": commit, "files": files}
        return add_skill(folder, name, origin)


def _listing(api: HfApi, repository: str, revision: str | None) -> tuple[str, dict[str, str | None]]:
    """Return the commit and the skill's files there, each with the SHA-256 that the hub keeps of large ones."""
    info = api.model_info(repository, revision=revision, files_metadata=True)
    sizes_by_name = {
        file.rfilename: file.lfs.sha256 if file.lfs is not None else None
        for file in info.siblings or ()
        if file.rfilename in CHECKED_FILES
    }
    for needed in CHECKED_FILES:
        if needed not in sizes_by_name:
            raise HubError(
                f"{repository} holds no {needed}; expected a repository that `skillgraft skill push` made, with "
                f"{' and '.join(CHECKED_FILES)} at its top"
            )
    if not info.sha or not _COMMIT.fullmatch(info.sha):
        raise HubError(f"{repository}: the hub names the commit {info.sha!r}, expected 40 hexadecimal digits")
    return info.sha, sizes_by_name


def _checked_file(path: Path, repository: str, recorded: str | None) -> dict[str, str]:
    """Return the hashes of a downloaded file; `HubError` unless it is there with the SHA-256 that the hub recorded."""
    if path.is_symlink() or not path.is_file():
        raise HubError(f"{repository}: {path.name} did not arrive; try again")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BUFFER_BYTES):
            digest.update(block)
    if recorded is not None and digest.hexdigest() != recorded:
        raise HubError(
            f"{repository}: {path.name} arrived with SHA-256 {digest.hexdigest()}, expected {recorded} as the hub "
            "records; the download is damaged: try again"
        )
    return {"sha256": digest.hexdigest(), "blake3": fingerprint_file(path).removeprefix("blake3:")}


def _checked_repository(repository: str) -> None:
    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise HubError(
            f"{repository!r} is not a repository of a model hub; expected USER/REPO, such as me/squad-recall"
        )


@contextmanager
def _hub(repository: str) -> Iterator[HfApi]:
    """Yield the hub's interface; any failure in the block becomes one `HubError` with a remedy."""
    from huggingface_hub import HfApi, errors, is_offline_mode

    api = HfApi(library_name="skillgraft")
    if is_offline_mode():
        raise HubError(
            f"{repository}: HF_HUB_OFFLINE is set, which forbids the network; expected it unset for push and pull: "
            "HF_HUB_OFFLINE=0 skillgraft …"
        )
    try:
        yield api
    except SkillgraftError:
        raise
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repository} has no such revision; expected a branch, tag or commit of it") from error
    except (errors.RepositoryNotFoundError, errors.HfHubHTTPError) as error:
        raise HubError(_explain(repository, api.endpoint, error.response.status_code)) from error
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        if (full := storage_error(error, Path(tempfile.gettempdir()))) is not None:
            raise full from error
        raise HubError(
            f"{repository}: the exchange with {api.endpoint} failed ({_first_line(error)}); nothing was kept: check "
            "the network and HF_ENDPOINT, and try again"
        ) from error


def _explain(repository: str, endpoint: str, status: int) -> str:
    if status in (401, 403):
        return (
            f"{repository}: {endpoint} refuses ({status}): it is private or absent, or your token may not do this; "
            "set HF_TOKEN to a token with that right, or log in: hf auth login"
        )
    if status == 404:
        return (
            f"{repository}: {endpoint} has no such repository or file (404), or it is private; check the name, or set "
            "HF_TOKEN"
        )
    if status >= 500:
        return f"{repository}: {endpoint} failed ({status}); nothing was kept: try again later"
    return f"{repository}: {endpoint} refuses the request ({status}); check the name and your right to it"


def _first_line(error: BaseException) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}"[:300]
