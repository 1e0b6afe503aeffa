"""`skill.json`: what a skill is, where it comes from and what it fits, as a typed record."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skillgraft.checkpoint.json_file import read_json_object
from skillgraft.errors import CheckpointError
from skillgraft.skills.forms import DENSE, LOWRANK

MANIFEST_FILE = "skill.json"
FORMAT_VERSION: Literal[1] = 1
SKILL_FORMULA = "v = θ_RL − θ_SFT"

Finite = Annotated[float, Field(allow_inf_nan=False)]
Size = Annotated[int, Field(ge=0)]


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
    """How one parameter's delta is stored; `shape` is the parameter's, `norm` the delta's Frobenius norm."""

    form: Literal["dense", "lowrank"]
    rank: Annotated[int, Field(ge=1)] | None = None
    shape: tuple[Size, ...]
    dtype: Literal["F32", "BF16", "F16"]
    norm: Annotated[Finite, Field(ge=0)]

    @model_validator(mode="after")
    def _rank_fits_form(self) -> TensorEntry:
        if (self.rank is None) != (self.form == DENSE):
            raise ValueError(f"rank {self.rank} with form {self.form}: a lowrank delta has a rank, a dense one none")
        if self.form == LOWRANK and len(self.shape) != 2:
            raise ValueError(f"shape {self.shape} with form lowrank: expected two dimensions")
        return self


class Manifest(_Record):
    """Everything that is known of a skill beside its tensors.

    `reconstruction_error` is ‖stored − exact‖_F / ‖exact‖_F over all tensors, 0.0 for an exact form. `sketch` holds
    a few elements of θ_SFT by parameter name, to recognise the base by its weights. `scores` are free-form rows.
    `language` is the ISO 639 code of the domain's texts.
    """

    format_version: Literal[1] = FORMAT_VERSION
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
    licence: str | None = None
    language: str | None = None
    reconstruction_error: Annotated[Finite, Field(ge=0)]
    tensors: dict[str, TensorEntry] = Field(min_length=1)
    scores: list[dict[str, Any]] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    sketch: dict[str, list[Finite]] = Field(default_factory=dict)

    @property
    def base_is_known(self) -> bool:
        """Whether `base` came from provenance; otherwise the SFT model's own fingerprint stands there."""
        return self.base.fingerprint != self.sft.fingerprint

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
    content = read_json_object(path)
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format_version is {content.get('format_version')!r}, expected {FORMAT_VERSION}; "
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
