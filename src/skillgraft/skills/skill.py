"""A skill on disk: a directory with `skill.safetensors`, `skill.json` and `README.md`, read lazily and checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skillgraft.checkpoint.header import TensorInfo, read_header
from skillgraft.checkpoint.tensor_io import read_array, read_array_part, read_tensor
from skillgraft.errors import CheckpointError, MissingPathError, did_you_mean
from skillgraft.skills.card import card_text
from skillgraft.skills.forms import (
    DENSE,
    LOWRANK,
    PACKED,
    SPARSE,
    decode_dense,
    decode_lowrank,
    packed,
    sparse,
    stored_names,
)
from skillgraft.skills.manifest import MANIFEST_FILE, Manifest, TensorEntry, manifest_text, read_manifest
from skillgraft.support.atomic import atomic_write_text

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
        """The form that it was packed as; else `lowrank` when any tensor is stored as factors, or `dense`.

        `manifest.tensors` has the form of each tensor.
        """
        if self.manifest.packing is not None:
            return self.manifest.packing.form
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
        """Return the tensors that store a delta, as stored: `(delta,)`, `(a, b)` with delta = b @ a, or others."""
        return tuple(read_tensor(self.stored[key]) for key in stored_names(name, self.entry(name).form))

    def product(self, name: str) -> tuple[Tensor, Tensor]:
        """Return fp32 factors (a, b) with delta = b @ a of a parameter that is stored low rank or packed."""
        import torch

        entry = self.entry(name)
        if entry.form == LOWRANK:
            a, b = self.factors(name)
            return a.float(), b.float()
        if entry.form != PACKED:
            raise CheckpointError(f"{self.path}: the delta of {name!r} is stored {entry.form}, not as factors")
        encoded = packed.Encoded(*(read_array(self.stored[key]) for key in stored_names(name, entry.form)))
        shape = entry.shape[0], entry.shape[1]
        a_values, b_values = packed.decode_packed(encoded, shape, entry.widths)
        return torch.from_numpy(a_values), torch.from_numpy(b_values)

    def delta(self, name: str) -> Tensor:
        """Return v for one parameter in fp32, in the parameter's shape (of factors: b @ a, multiplied in fp32)."""
        entry = self.entry(name)
        if entry.form == SPARSE:
            return self._sparse_delta(name, entry)
        if entry.form == DENSE:
            return decode_dense(*self.factors(name))
        return decode_lowrank(*self.product(name))

    def _sparse_delta(self, name: str, entry: TensorEntry) -> Tensor:
        import torch

        arrays = [read_array(self.stored[key]) for key in stored_names(name, entry.form)]
        coding: sparse.Coding = entry.coding or "places"
        values = sparse.decode_sparse(sparse.Encoded(coding, *arrays), entry.elements)
        if entry.dtype == "BF16":
            return torch.from_numpy(values.view("int16")).view(torch.bfloat16).float().reshape(entry.shape)
        return torch.from_numpy(values).float().reshape(entry.shape)


def is_skill(directory: Path) -> bool:
    """Return whether `directory` holds a skill's manifest."""
    return (directory / MANIFEST_FILE).is_file()


def load_skill(path: str | os.PathLike[str]) -> Skill:
    """Return the skill in the directory `path`, its manifest and headers checked; executes no code.

    Of the tensors, only indices of sparse deltas and packed scales are read.

    Raises `MissingPathError` when the directory or one of its files is missing, and `CheckpointError` when the
    manifest is damaged or of another version, when the tensors are not those that it names, or for an out-of-range
    index or an invalid scale.
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
    _check_contents(path, manifest, stored)
    return Skill(path, manifest, stored)


def write_skill_description(directory: Path, manifest: Manifest) -> None:
    """Write `skill.json` and the card beside the tensors in `directory`."""
    manifest_lines, card = manifest_text(manifest), card_text(manifest)
    atomic_write_text(directory / MANIFEST_FILE, manifest_lines)
    atomic_write_text(directory / CARD_FILE, card)


def add_scores(directory: str | os.PathLike[str], scores: Sequence[Mapping[str, Any]]) -> Skill:
    """Append measured `scores` to a skill's manifest and write its card again; the tensors are not touched.

    Raises `CheckpointError` or `MissingPathError` as `load_skill` does; the files are replaced one by one, each whole.
    """
    skill = load_skill(directory)
    manifest = skill.manifest.model_copy(update={"scores": [*skill.manifest.scores, *map(dict, scores)]})
    write_skill_description(skill.path, manifest)
    return load_skill(directory)


def _check_stored(path: Path, manifest: Manifest, stored: Mapping[str, TensorInfo]) -> None:
    """Refuse tensors that the manifest doesn't name, and the reverse, and other shapes or dtypes."""
    left = dict(stored)
    for name, entry in manifest.tensors.items():
        for key, dtype, shape in entry.specs(name):
            info = left.pop(key, None)
            if info is None:
                raise CheckpointError(
                    f"{path}: {MANIFEST_FILE} names {name!r} as {entry.form}, but {WEIGHTS_FILE} holds no {key!r}; "
                    "extract or download the skill again"
                )
            if (info.dtype, info.shape) != (dtype, shape):
                raise CheckpointError(
                    f"{path}: tensor {key!r} is {info.dtype} of shape {list(info.shape)}, expected {dtype} of "
                    f"{list(shape)} from {MANIFEST_FILE}; extract or download the skill again"
                )
    if left:
        raise CheckpointError(
            f"{path}: {WEIGHTS_FILE} holds {next(iter(left))!r}, which {MANIFEST_FILE} does not name; "
            "extract or download the skill again"
        )


def _check_contents(path: Path, manifest: Manifest, stored: Mapping[str, TensorInfo]) -> None:
    """Reject out-of-range indices and invalid scales before anything is computed with them."""
    for name, entry in manifest.tensors.items():
        infos = [stored[key] for key in stored_names(name, entry.form)]
        try:
            if entry.form == SPARSE:
                _check_index(entry, infos[0], infos[1])
            elif entry.form == PACKED:
                for info in infos[2:]:
                    packed.check_scales(read_array(info), entry.widths)
        except ValueError as error:
            raise damaged(path, name, error) from error


def _check_index(entry: TensorEntry, offsets_info: TensorInfo, index_info: TensorInfo) -> None:
    """Raise `ValueError` as the checks of `sparse` do; a run of blocks at a time, so that memory is that of one run."""
    offsets, coding, elements = read_array(offsets_info), entry.coding or "places", entry.elements
    sparse.check_offsets(offsets, elements, entry.count or 0)
    for first in range(0, sparse.blocks(elements), sparse.RUN):
        last = min(first + sparse.RUN, sparse.blocks(elements))
        index = read_array_part(index_info, *sparse.index_part(coding, offsets, elements, first, last))
        room = min(last * sparse.BLOCK, elements) - first * sparse.BLOCK
        sparse.positions_of(coding, index, offsets[first : last + 1], room)


def damaged(path: Path, name: str, reason: ValueError) -> CheckpointError:
    """Return the error for a stored delta that contradicts itself."""
    return CheckpointError(f"{path}: the delta of {name!r} is damaged: {reason}; pack or download the skill again")
