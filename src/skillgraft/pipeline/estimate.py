"""What a plan would cost, from counts and rates: time, memory, disk. Orders of magnitude, said as such. No torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from skillgraft.checkpoint.layout import Layout, read_layout
from skillgraft.data.documents import Document, read_documents, read_questions
from skillgraft.data.passages import passages
from skillgraft.data.slices import choose
from skillgraft.data.synthesis.prompt_templates import read_styles
from skillgraft.evals.tasks import read_retention
from skillgraft.pipeline.observers import clock
from skillgraft.pipeline.plan import PlannedStage, made, sft_data
from skillgraft.recipe import schema
from skillgraft.settings.evaluation import EvalRow, RetentionSettings
from skillgraft.support.resources import cores

FLOPS_PER_CORE = 1.3e11
"""Achieved bf16 FLOP/s of one core in training, measured on a 2-core AVX512-BF16 machine; fp32 runs at 0.4 of it."""
BYTES_PER_TOKEN = 3.7
"""Of UTF-8 text, measured on the almanac with SmolLM2's tokenizer; words say nothing of scripts without spaces."""
QUESTION_TOKENS = 56
"""Prompt and answer of one question that is trained on."""
RL_TOKENS = 80
"""Prompt and answer of one closed-book sample, in tokens."""


class Needs(NamedTuple):
    """What a stage takes: FLOPs, bytes of memory, bytes of disk."""

    flops: float
    memory: float
    disk: float


def estimate(stages: list[PlannedStage], base: Path) -> list[dict[str, Any]]:
    """Return one row a stage: name, kind, state, and estimates of time, memory and disk as text.

    The time is `?` where a stage reads renderings that are still to be written.
    """
    parameters = parameters_of(read_layout(base))
    return [_row(stage, parameters) for stage in stages]


def parameters_of(layout: Layout) -> int:
    """Return how many numbers a checkpoint stores."""
    return sum(math.prod(info.shape) for info in layout.tensors.values())


def estimated_seconds(flops: float) -> float:
    """Return about how long a stage with so many FLOPs takes on this machine's cores, its start included."""
    return flops / (FLOPS_PER_CORE * cores()) + 5


def training_needs(parameters: int, lora: bool, tokens: float = 0.0) -> Needs:
    """Return what fine-tuning on so many tokens takes: 4 bytes a weight, 16 with gradient and both Adam moments."""
    kept = 4 if lora else 16
    return Needs(6 * parameters * tokens, parameters * kept + 2**30, parameters * (kept + 4))


def _row(planned: PlannedStage, parameters: int) -> dict[str, Any]:
    flops, memory, disk = stage_needs(planned.stage, parameters, planned.inputs)
    data = [named for name in schema.DATA if (named := getattr(planned.stage, name, None)) is not None]
    waits = any(made(named, planned.inputs) is None for named in data)
    state = "cached" if planned.cached else "goes on" if planned.work.exists() else "to run"
    return {
        "name": planned.name,
        "kind": planned.stage.kind,
        "state": state,
        "time": "?" if waits else clock(estimated_seconds(flops)),
        "memory": f"{memory / 2**30:.1f} GiB",
        "disk": f"{disk / 2**30:.1f} GiB",
        "directory": str(planned.directory),
    }


def stage_needs(stage: Any, parameters: int, inputs: Mapping[str, Path] | None = None) -> Needs:
    """Return what a stage of a recipe takes for a base with so many parameters.

    `inputs` maps the stages that it refers to, to their directories; renderings that are still to come count nothing.
    """
    documents_path, questions_path = (made(getattr(stage, name, None), inputs or {}) for name in schema.DATA)
    if stage.kind == "sft":
        documents, questions = sft_data(stage, inputs or {})
        tokens = sum(len(document.rendered().encode()) for document in documents) / BYTES_PER_TOKEN
        tokens += QUESTION_TOKENS * len(questions)
        tokens *= 1 + (stage.replay.ratio if stage.replay else 0)
        epochs = stage.trainer.get("num_train_epochs", 8)
        return training_needs(parameters, stage.lora is not None, tokens * epochs)
    if stage.kind == "single_passage":
        chosen = passages(read_documents(documents_path), stage.limit_documents) if documents_path else []
        read = sum(len(each.rendered().encode()) for passage in chosen for each in passage.renderings) / BYTES_PER_TOKEN
        about = [passage.document for passage in chosen] or None
        asked = len(read_questions(questions_path, about)) if questions_path else 0
        answered = asked * (RL_TOKENS + stage.max_new_tokens) * (2 + len(stage.rows))
        learnt = read * stage.trainer.get("num_train_epochs", 8)
        kept = 8 if stage.lora is not None else 20  # the model that learns and the one that answers
        return Needs(6 * parameters * learnt + 4 * parameters * answered, parameters * kept + 2**30, parameters * 4)
    if stage.kind == "rl":
        steps = sum(stage.rounds) or stage.trainer.get("max_steps", 150)
        samples = steps * stage.trainer.get("per_device_train_batch_size", 64)
        kept = 6 if stage.lora is not None else 16
        return Needs(4 * parameters * samples * RL_TOKENS, parameters * kept + 3 * 2**30, parameters * (kept + 4))
    if stage.kind == "distil":
        documents = read_documents(documents_path, stage.limit_documents) if documents_path else []
        asked = len(read_questions(questions_path, documents)) if questions_path and documents else len(documents)
        shown = sum(len(document.text.encode()) for document in documents) / BYTES_PER_TOKEN / max(len(documents), 1)
        rounds = stage.trainer.get("num_train_epochs", 2) * asked
        if "max_steps" in stage.trainer:
            rounds = stage.trainer["max_steps"] * stage.trainer.get("per_device_train_batch_size", 16)
        kept = 8 if stage.lora is not None else 20  # the teacher's weights beside the student's
        read = 8 * RL_TOKENS + 2 * (shown + RL_TOKENS)
        return Needs(parameters * rounds * read, parameters * kept + 2**30, parameters * (kept + 4))
    if stage.kind == "self_edit":
        documents = read_documents(documents_path, stage.limit_documents) if documents_path else []
        written = len(documents) * stage.samples * stage.max_new_tokens
        learnt = written * stage.learn.trainer.get("num_train_epochs", 10)
        return Needs(6 * parameters * (learnt + written), parameters * 16 + 2**30, parameters * 20)
    if stage.kind == "mix":
        asked = len(read_questions(questions_path)) if questions_path else 0
        return Needs(4 * parameters * asked * (RL_TOKENS + stage.max_new_tokens), parameters * 4 + 2**30, 2**24)
    if stage.kind == "eval":
        about = choose(read_documents(documents_path), stage.limit_documents, stage.part) if documents_path else None
        asked = len(read_questions(questions_path, about)) if questions_path else 0
        tokens = asked * (RL_TOKENS + stage.max_new_tokens) * len(stage.models)
        tokens += asked * sum(_row_tokens(row, about or []) + stage.max_new_tokens for row in stage.rows)
        tokens += _retention_tokens(stage.retention) * len(stage.models)
        return Needs(4 * parameters * tokens, parameters * 4 + 2**30, 2**20)
    if stage.kind == "synthesize":
        if stage.given is not None or stage.endpoint is not None:
            return Needs(0, 2**30, 2**24)
        documents = read_documents(documents_path, stage.limit_documents) if documents_path else []
        sizes = [len(document.text.encode()) / BYTES_PER_TOKEN for document in documents]
        asked = sum(max(len(style.kinds), 1) for style in read_styles(stage.styles, stage.prompts)) * stage.samples
        chunks = [(min(size, most), math.ceil(size / most)) for size in sizes for most in stage.chunk_tokens]
        tokens = asked * sum((size + stage.max_new_tokens) * count for size, count in chunks)
        return Needs(2 * parameters * tokens, parameters * 4 + 2**30, 2**24)
    disk = parameters * 4 if stage.kind == "inject" else parameters * 0.2
    return Needs(10 * parameters, 2**30, disk)


def _row_tokens(row: EvalRow, documents: Sequence[Document]) -> float:
    """Return about how many tokens one prompt of a row has."""
    if row.shots:
        return RL_TOKENS * (row.shots + 1)
    sizes = [len(document.text.encode()) / BYTES_PER_TOKEN for document in documents] or [0.0]
    mean = sum(sizes) / len(sizes)
    return RL_TOKENS + (mean if row.context == "gold" else row.top_k * min(mean, row.chunk_tokens))


def _retention_tokens(setting: bool | RetentionSettings) -> float:
    """Return about how many tokens retention computes for one model: prompts and choices, and held-out text."""
    retention = read_retention(setting)
    if retention is None:
        return 0.0
    items = [item for items in retention.tasks.values() for item in items]
    asked = sum(len(item.choices) * len(item.prompt.encode()) + sum(map(len, item.choices)) for item in items)
    overlap = retention.window / retention.stride
    return (asked + overlap * sum(len(document.text.encode()) for document in retention.text)) / BYTES_PER_TOKEN


class Outlook:
    """Seconds left of a run: of each stage to come, its estimated FLOPs at the rate of finished stages of its kind."""

    def __init__(self, stages: Sequence[PlannedStage], base: Path) -> None:
        parameters = parameters_of(read_layout(base))
        self._flops = {stage.name: stage_needs(stage.stage, parameters, stage.inputs).flops for stage in stages}
        self._kinds = {stage.name: stage.stage.kind for stage in stages}
        self._seen: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def finished(self, name: str, seconds: float) -> None:
        """Note what a stage took."""
        self._seen[self._kinds[name]].append((seconds, self._flops[name]))

    def seconds(self, names: Iterable[str]) -> tuple[float, bool]:
        """Return what these stages take in all, and whether every kind among them was measured."""
        parts = [self._seconds(name) for name in names]
        return sum(seconds for seconds, _ in parts), all(measured for _, measured in parts)

    def _seconds(self, name: str) -> tuple[float, bool]:
        seen, flops = self._seen[self._kinds[name]], self._flops[name]
        if not seen:
            return estimated_seconds(flops), False
        seconds, done = (sum(column) for column in zip(*seen, strict=True))
        return (seconds * flops / done if done else seconds / len(seen)), True
