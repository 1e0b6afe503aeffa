"""What a plan would cost, from counts and rates: time, memory, disk. Orders of magnitude, said as such. No torch."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from skillgraft.checkpoint.layout import read_layout
from skillgraft.domains.knowledge import read_documents, read_questions
from skillgraft.planning import PlannedStage
from skillgraft.watch import clock

FLOPS_PER_CORE = 1.3e11
"""Achieved bf16 FLOP/s of one core in training, measured on a 2-core AVX512-BF16 machine; fp32 runs at 0.4 of it."""
TOKENS_PER_WORD = 1.4
RL_TOKENS = 80
"""Prompt and answer of one closed-book sample, in tokens."""


def estimate(stages: list[PlannedStage], base: Path) -> list[dict[str, Any]]:
    """Return one row a stage: name, kind, state, and estimates of time, memory and disk as text."""
    parameters = sum(math.prod(info.shape) for info in read_layout(base).tensors.values())
    rate = FLOPS_PER_CORE * (os.cpu_count() or 1)
    return [_row(stage, parameters, rate) for stage in stages]


def _row(planned: PlannedStage, parameters: int, rate: float) -> dict[str, Any]:
    flops, memory, disk = _needs(planned, parameters)
    state = "cached" if planned.cached else "goes on" if planned.work.exists() else "to run"
    return {
        "name": planned.name,
        "kind": planned.stage.kind,
        "state": state,
        "time": clock(flops / rate + 5),
        "memory": f"{memory / 2**30:.1f} GiB",
        "disk": f"{disk / 2**30:.1f} GiB",
        "directory": str(planned.directory),
    }


def _needs(planned: PlannedStage, parameters: int) -> tuple[float, float, float]:
    """Return FLOPs, bytes of memory and bytes of disk; 4 bytes a weight, 16 with gradient and both Adam moments."""
    stage = planned.stage
    if stage.kind == "sft":
        documents = read_documents(stage.documents, stage.limit_documents) if stage.documents else []
        words = sum(len(d.text.split()) + len(d.title.split()) for d in documents)
        words += 40 * len(read_questions(stage.questions)) if stage.questions else 0
        tokens = words * TOKENS_PER_WORD * stage.trainer.get("num_train_epochs", 8)
        kept = 4 if stage.lora is not None else 16
        return 6 * parameters * tokens, parameters * kept + 2**30, parameters * (kept + 4)
    if stage.kind == "rl":
        steps = sum(stage.rounds) or stage.trainer.get("max_steps", 150)
        samples = steps * stage.trainer.get("per_device_train_batch_size", 64)
        kept = 6 if stage.lora is not None else 16
        return 4 * parameters * samples * RL_TOKENS, parameters * kept + 3 * 2**30, parameters * (kept + 4)
    if stage.kind == "eval":
        about = read_documents(stage.documents, stage.limit_documents) if stage.documents else None
        tokens = len(read_questions(stage.questions, about)) * (RL_TOKENS + stage.max_new_tokens) * len(stage.models)
        return 4 * parameters * tokens, parameters * 4 + 2**30, 2**20
    disk = parameters * 4 if stage.kind == "inject" else parameters * 0.2
    return 10 * parameters, 2**30, disk
