"""A skill on disk: a directory with `skill.safetensors`, `skill.json` and `README.md`, read lazily and checked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.checkpoint.header import TensorInfo, read_header
from skillgraft.checkpoint.tensor_io import read_tensor
from skillgraft.errors import CheckpointError, MissingPathError, did_you_mean
from skillgraft.skills.card import card_text
from skillgraft.skills.forms import DENSE, FORMS, LOWRANK, stored_names, stored_shapes
from skillgraft.skills.manifest import MANIFEST_FILE, Manifest, TensorEntry, manifest_text, read_manifest

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS_FILE = "skill.safetensors"
CARD_FILE = "README.md"


@dataclass(frozen=True)
class Skill:
    """A checked skill; its tensors stay on disk until `delta` or `factors` reads one.

    `stored` maps the names in `skill.safetensors` to their places.
    """

    path: Path
    manifest: Manifest
    stored: Mapping[str, TensorInfo]

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that the skill changes, in stored order."""
        return tuple(self.manifest.tensors)

    @property
    def form(self) -> str:
        """`lowrank` when any tensor is stored as factors, else `dense`; `manifest.tensors` tells it for each."""
        return LOWRANK if any(entry.form == LOWRANK for entry in self.manifest.tensors.values()) else DENSE

    @property
    def weights_file(self) -> Path:
        """The file with the tensors."""
        return self.path / WEIGHTS_FILE

    def entry(self, name: str) -> TensorEntry:
        """Return the manifest entry of a parameter; `CheckpointError` for one that the skill does not change."""
        if name not in self.manifest.tensors:
            raise CheckpointError(f"{self.path}: the skill has no delta for {name!r}{did_you_mean(name, self.names)}")
        return self.manifest.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a parameter's delta, which is the parameter's."""
        return self.entry(name).shape

    def norm(self, name: str) -> float:
        """Return the Frobenius norm of a parameter's stored delta."""
        return self.entry(name).norm

    def factors(self, name: str) -> tuple[Tensor, ...]:
        """Return the tensors that store a delta, as stored: `(delta,)` or `(a, b)` with delta = b @ a."""
        return tuple(read_tensor(self.stored[key]) for key in stored_names(name, self.entry(name).form))

    def delta(self, name: str) -> Tensor:
        """Return v for one parameter in fp32, in the parameter's shape (low rank: b @ a, multiplied in fp32)."""
        return FORMS[self.entry(name).form].decode(*self.factors(name))


def is_skill(directory: Path) -> bool:
    """Return whether `directory` holds a skill's manifest."""
    return (directory / MANIFEST_FILE).is_file()


def load_skill(path: str | os.PathLike[str]) -> Skill:
    """Return the skill in the directory `path`, its manifest and headers checked; executes no code, reads no tensor.

    Raises `MissingPathError` when the directory or one of its files is missing, and `CheckpointError` when the
    manifest is damaged or of another version, or when the tensors are not those that it names.
    """
    path = Path(path)
    if not path.exists():
        raise MissingPathError(f"{path}: no such directory; expected a skill ({MANIFEST_FILE}, {WEIGHTS_FILE})")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file; expected the skill's directory, which holds {MANIFEST_FILE}")
    for name in (MANIFEST_FILE, WEIGHTS_FILE):
        if not (path / name).is_file():
            raise MissingPathError(f"{path}: no {name}; expected a skill directory, as `extract` writes it")
    manifest = read_manifest(path / MANIFEST_FILE)
    stored = {info.name: info for info in read_header(path / WEIGHTS_FILE).tensors}
    _check_stored(path, manifest, stored)
    return Skill(path, manifest, stored)


def write_skill_description(directory: Path, manifest: Manifest) -> None:
    """Write `skill.json` and the card beside the tensors in `directory`."""
    (directory / MANIFEST_FILE).write_text(manifest_text(manifest), encoding="utf-8")
    (directory / CARD_FILE).write_text(card_text(manifest), encoding="utf-8")


def add_scores(directory: str | os.PathLike[str], scores: Sequence[Mapping[str, Any]]) -> Skill:
    """Append measured `scores` to a skill's manifest and write its card anew; the tensors are not touched.

    Raises `CheckpointError` or `MissingPathError` as `load_skill` does; the files are replaced one by one, each whole.
    """
    skill = load_skill(directory)
    manifest = skill.manifest.model_copy(update={"scores": [*skill.manifest.scores, *map(dict, scores)]})
    with tempfile.TemporaryDirectory(dir=skill.path, prefix=".scores-") as scratch:
        write_skill_description(Path(scratch), manifest)
        for name in (MANIFEST_FILE, CARD_FILE):
            os.replace(Path(scratch) / name, skill.path / name)
    return load_skill(directory)


def _check_stored(path: Path, manifest: Manifest, stored: Mapping[str, TensorInfo]) -> None:
    """Refuse tensors that the manifest doesn't name, and the reverse, and other shapes or dtypes."""
    left = dict(stored)
    for name, entry in manifest.tensors.items():
        shapes = stored_shapes(entry.form, entry.shape, entry.rank)
        for key, shape in zip(stored_names(name, entry.form), shapes, strict=True):
            info = left.pop(key, None)
            if info is None:
                raise CheckpointError(
                    f"{path}: {MANIFEST_FILE} names {name!r} as {entry.form}, but {WEIGHTS_FILE} holds no {key!r}; "
                    "extract or download the skill again"
                )
            if (info.dtype, info.shape) != (entry.dtype, shape):
                raise CheckpointError(
                    f"{path}: tensor {key!r} is {info.dtype} of shape {list(info.shape)}, expected {entry.dtype} of "
                    f"{list(shape)} from {MANIFEST_FILE}; extract or download the skill again"
                )
    if left:
        raise CheckpointError(
            f"{path}: {WEIGHTS_FILE} holds {next(iter(left))!r}, which {MANIFEST_FILE} does not name; "
            "extract or download the skill again"
        )
