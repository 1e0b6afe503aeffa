"""`skill.json`: what a skill is, where it comes from and what it fits, as a typed record."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from skillgraft.checkpoint.header import TensorSpec
from skillgraft.checkpoint.safe_read import read_json_object
from skillgraft.errors import CheckpointError
from skillgraft.skills.forms import DENSE, LOWRANK, PACKED, SPARSE, Storage, stored_specs

MANIFEST_FILE = "skill.json"
FORMAT_VERSION: Literal[2] = 2
READ_VERSIONS = (1, FORMAT_VERSION)
"""Version 1 has dense and low-rank deltas only; all that it holds means the same in version 2."""
SKILL_FORMULA = "v = θ_RL − θ_SFT"

Finite = Annotated[float, Field(allow_inf_nan=False)]
MAX_NORM = 1e150
"""Far above what float32 tensors can have; sums of squares of such norms are finite."""


def _bounded(norm: float) -> float:
    if norm > MAX_NORM:
        raise ValueError(f"{norm:g} is not a norm of weights, expected at most {MAX_NORM:g}")
    return norm


Norm = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_bounded)]
Size = Annotated[int, Field(ge=0)]


MAX_SCORES = 100_000
"""Cells of the table of scores: one that a card or a terminal can show."""


def _showable(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    columns = {key for row in scores for key in row}
    if len(scores) * len(columns) > MAX_SCORES:
        raise ValueError(f"{len(scores)} rows of {len(columns)} columns; expected at most {MAX_SCORES} cells")
    return scores


class _Record(BaseModel):
    """Unknown keys are errors: a misspelt or newer key must not be dropped in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseReference(_Record):
    """The pre-trained checkpoint below both operands; `id` is None when only its weights are known."""

    id: str | None
    fingerprint: str


class CheckpointReference(_Record):
    """A checkpoint by the fingerprint of its weights; `sha256` by file name where the hub had recorded it."""

    fingerprint: str
    sha256: dict[str, str] | None = None


class Architecture(_Record):
    """Facts that change what weights mean without changing their shapes; None where the config doesn't say."""

    model_type: str | None
    num_attention_heads: int | None
    num_key_value_heads: int | None
    head_dim: int | None
    hidden_size: int | None
    vocab_size: int | None
    tie_word_embeddings: bool | None
    rope: dict[str, Any]


class TensorEntry(_Record):
    """Storage of one parameter's delta; `shape` is the parameter's, `norm` the stored delta's Frobenius norm.

    `dtype` is that of the stored numbers (packed: of the scales). `rank` counts the directions of `lowrank` and
    `packed`; `bits` is the number of them, the largest first, with codes of 8, 4, 3 and 2 bits; `count` elements of a
    `sparse` delta are kept, their index in `coding`. `reconstruction_error` is ‖stored − packed from‖ / ‖packed from‖,
    0.0 where nothing was lost and None where the delta was never packed.
    """

    form: Literal["dense", "lowrank", "sparse", "packed"]
    rank: Annotated[int, Field(ge=1)] | None = None
    count: Size | None = None
    coding: Literal["places", "bitmap"] | None = None
    bits: dict[Literal["8", "4", "3", "2"], Annotated[int, Field(ge=1)]] | None = None
    shape: tuple[Size, ...]
    dtype: Literal["F32", "BF16", "F16"]
    norm: Norm
    reconstruction_error: Norm | None = None

    @property
    def elements(self) -> int:
        """The number of elements of the parameter."""
        return math.prod(self.shape)

    @property
    def widths(self) -> dict[int, int]:
        """The number of directions by the bits of their codes; empty unless packed."""
        return {int(width): count for width, count in (self.bits or {}).items()}

    def specs(self, name: str) -> tuple[TensorSpec, ...]:
        """Return name, dtype and shape of the tensors that hold the delta of the parameter `name`."""
        storage = Storage(self.form, self.shape, self.dtype, self.rank, self.count, self.coding, self.widths)
        return stored_specs(name, storage)

    @model_validator(mode="after")
    def _fields_fit_form(self) -> TensorEntry:
        if (self.rank is None) != (self.form in (DENSE, SPARSE)):
            raise ValueError(f"rank {self.rank} with form {self.form}: lowrank and packed have a rank, others none")
        if self.form in (LOWRANK, PACKED) and len(self.shape) != 2:
            raise ValueError(f"shape {self.shape} with form {self.form}: expected two dimensions")
        if (self.count is None, self.coding is None) != ((self.form != SPARSE,) * 2):
            raise ValueError(f"count {self.count}, coding {self.coding} with form {self.form}: sparse has both")
        if self.count is not None and self.count > self.elements:
            raise ValueError(f"count {self.count} with shape {self.shape}: more values than elements")
        if (self.bits is None) != (self.form != PACKED) or sum(self.widths.values()) != (self.rank if self.bits else 0):
            raise ValueError(f"bits {self.bits} with form {self.form}: packed has the widths of its {self.rank} ranks")
        if self.form == PACKED and self.dtype != "BF16":
            raise ValueError(f"dtype {self.dtype} with form packed: expected scales in BF16")
        return self

    @model_serializer(mode="wrap")
    def _without_what_does_not_apply(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialise(self).items() if value is not None}


class Packing(_Record):
    """Record of `pack`: the form and settings requested, and the source.

    `source` is the fingerprint of the original's `skill.safetensors`, `source_reconstruction_error` that of its
    manifest, and `source_bytes` the size of its directory. `error` is ‖stored − source‖ / ‖source‖ over all tensors,
    and `errors` holds it by module kind.
    """

    form: Literal["dense", "sparse", "lowrank", "packed", "mask"]
    settings: dict[str, Any]
    source: str
    source_reconstruction_error: Norm
    source_bytes: Size
    error: Norm | None = None
    errors: dict[str, Norm]


class Manifest(_Record):
    """Manifest of a skill: all that is known of it beside its tensors.

    `reconstruction_error` is ‖stored − exact‖_F / ‖exact‖_F over all tensors, 0.0 for an exact form. Of a skill packed
    from one that had lost e₁ and lost e₂ in packing it is the most that both can be, e₁ + (1 + e₁)·e₂: exact where
    either is 0, else a bound (`error_is_bound`). `sketch` holds a few elements of θ_SFT by parameter name, to recognise
    the base by its weights. `scores` are free-form rows; `remarks` what its extraction noticed of the two models.
    `language` is the ISO 639 code of the domain's texts.
    """

    format_version: Literal[1, 2] = FORMAT_VERSION
    formula: str
    created: str
    skillgraft_version: str
    base: BaseReference
    sft: CheckpointReference
    rl: CheckpointReference
    tokenizer: str
    architecture: Architecture
    domain: str | None = None
    recipe: str | None = None
    seed: int | None = None
    license: str | None = None
    language: str | None = None
    reconstruction_error: Norm
    packing: Packing | None = None
    tensors: dict[str, TensorEntry] = Field(min_length=1)
    scores: Annotated[list[dict[str, Any]], AfterValidator(_showable)] = Field(default_factory=list)
    remarks: list[Annotated[str, Field(max_length=1000)]] = Field(default_factory=list, max_length=20)
    versions: dict[str, str] = Field(default_factory=dict)
    sketch: dict[str, list[Finite]] = Field(default_factory=dict)

    @property
    def base_is_known(self) -> bool:
        """True if `base` came from provenance; otherwise it holds the SFT model's own fingerprint."""
        return self.base.fingerprint != self.sft.fingerprint

    @property
    def error_is_bound(self) -> bool:
        """True if `reconstruction_error` is an upper bound, of two successive losses."""
        return self.packing is not None and bool(self.packing.error and self.packing.source_reconstruction_error)

    @property
    def norm(self) -> float:
        """The Frobenius norm of the whole skill."""
        return math.sqrt(math.fsum(entry.norm**2 for entry in self.tensors.values()))

    @property
    def sizes(self) -> dict[str, tuple[tuple[int, ...], float]]:
        """Shape and Frobenius norm of each delta by name."""
        return {name: (entry.shape, entry.norm) for name, entry in self.tensors.items()}


def read_manifest(path: Path) -> Manifest:
    """Return the checked manifest in the file `path`.

    Raises `MissingPathError` when there is no such file and `CheckpointError`, naming each wrong key, when it is
    damaged or of another format version.
    """
    content = read_json_object(path, strict=True)
    if "licence" in content and "license" not in content:  # as older versions spelled it
        content = {"license" if key == "licence" else key: value for key, value in content.items()}
    if content.get("format_version") not in READ_VERSIONS:
        raise CheckpointError(
            f"{path}: format_version is {content.get('format_version')!r}, expected {FORMAT_VERSION} or older; "
            "the skill was written by another version of Skillgraft, or the file is damaged"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:5])
        raise CheckpointError(
            f"{path}: no valid skill manifest: {wrong}; extract or download the skill again"
        ) from error


def manifest_text(manifest: Manifest) -> str:
    """Return the manifest as JSON: indented, with each list of numbers on one line."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
    # A raw line break can't occur inside a JSON string, so this touches lists only.
    return re.sub(r"\[\n\s+([-+.0-9eE,\s]+?)\n\s*\]", lambda match: f"[{' '.join(match[1].split())}]", text) + "\n"
