"""Cost estimates from counts and rates: FLOPs, memory, disk. Orders of magnitude, said as such. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from skillgraft.adapters import training_bytes
from skillgraft.data.documents import Document, read_documents
from skillgraft.data.slices import choose
from skillgraft.data.tasks import Question, read_questions
from skillgraft.settings.base import stage_named
from skillgraft.support.resources import cores

FLOPS_PER_CORE = 1.3e11
"""Achieved bf16 FLOP/s of one core in training, measured on a 2-core AVX512-BF16 machine; fp32 runs at 0.4 of it."""
BYTES_PER_TOKEN = 3.7
"""Of UTF-8 text, measured on the almanac with SmolLM2's tokenizer; words say nothing of scripts without spaces."""
QUESTION_TOKENS = 56
"""Prompt and answer of one question that is trained on."""
ANSWER_TOKENS = 80
"""Prompt and answer of one closed-book sample, in tokens."""


class Needs(NamedTuple):
    """What a stage takes: FLOPs, bytes of memory, bytes of disk."""

    flops: float
    memory: float
    disk: float


@dataclass(frozen=True)
class Costing:
    """What an estimate knows: the base's number of parameters, and the directories of the stages that are read."""

    parameters: int
    inputs: Mapping[str, Path] = field(default_factory=dict)

    def documents(self, settings: Any) -> list[Document]:
        """Return the documents that a stage reads, chosen as it does; none where a stage has yet to write them."""
        path = written(settings.documents, self.inputs)
        limit, part = (getattr(settings, name, None) for name in ("limit_documents", "part"))
        return choose(read_documents(path), limit, part) if path else []

    def questions(self, settings: Any, documents: Sequence[Document] | None = None) -> list[Question]:
        """Return the questions that a stage reads, about `documents`; none where a stage has yet to write them."""
        path = written(settings.questions, self.inputs)
        return read_questions(path, documents) if path else []


def written(data: Path | None, inputs: Mapping[str, Path]) -> Path | None:
    """Return where a data field's documents or questions lie; None for none, or where a stage has yet to write them."""
    stage = None if data is None else stage_named(data)
    if stage is None:
        return data
    return inputs[stage] if stage in inputs and inputs[stage].exists() else None


def text_tokens(text: str) -> float:
    """Return about how many tokens a text has."""
    return len(text.encode()) / BYTES_PER_TOKEN


def estimated_seconds(flops: float) -> float:
    """Return about how long a stage with so many FLOPs takes on this machine's cores, its start included."""
    return flops / (FLOPS_PER_CORE * cores()) + 5


def training_needs(parameters: int, adapt: Mapping[str, Any] | None, tokens: float = 0.0) -> Needs:
    """Return what fine-tuning on so many tokens takes, by the bytes that each weight takes in training."""
    per_weight = training_bytes(adapt)
    return Needs(6 * parameters * tokens, parameters * per_weight + 2**30, parameters * (per_weight + 4))


def cheap(settings: Any, costing: Costing) -> Needs:
    """Return what arithmetic on checkpoints takes: one pass over the weights."""
    return Needs(10 * costing.parameters, 2**30, costing.parameters * 0.2)
