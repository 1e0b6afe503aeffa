"""What an eval stage reads beside its questions, checked and hashed when the run is planned. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from blake3 import blake3

from skillgraft.data.documents import Document, Question
from skillgraft.data.retrieval import require_bm25s
from skillgraft.evals.in_context import read_examples
from skillgraft.evals.tasks import read_retention
from skillgraft.settings.evaluation import RetentionSettings


def evaluation_data(stage: Any, questions: Sequence[Question], documents: Sequence[Document]) -> dict[str, str]:
    """Return the hashes of the retention tasks, held-out text, worked examples and searched documents of a stage.

    Raises:
        SkillgraftError: something of it is missing or broken, an example is evaluated too, or bm25s is not installed.
    """
    found: dict[str, str] = {}
    if isinstance(stage.retention, RetentionSettings) and (retention := read_retention(stage.retention)):
        for name, items in retention.tasks.items():
            found[f"retention {name}"] = _digest([[i.prompt, *i.choices, i.answer] for i in items])
        if retention.text:
            found["retention text"] = _digest([document.rendered() for document in retention.text])
    for row in stage.rows:
        if row.context == "bm25":
            require_bm25s()
            found["searched"] = _digest([[d.id, d.title, d.text] for d in documents])
        if row.shots_from is not None:
            examples = read_examples(row.shots_from, row.shots, questions)
            found[f"examples {row.id}"] = _digest([[e.question, *e.answers] for e in examples])
    return found


def evaluation_hashed(stage: Any) -> dict[str, Any]:
    """Return the settings of retention and rows that decide a result, without paths: data has its own hashes."""
    settings: dict[str, Any] = {}
    if isinstance(stage.retention, RetentionSettings):
        own = stage.retention.model_dump(mode="json", exclude_defaults=True, exclude={"data", "text"})
        settings["retention"] = own | {"text": stage.retention.text is not None}
    if stage.rows:
        hidden = {"model", "shots_from"}
        settings["rows"] = [row.model_dump(mode="json", exclude_defaults=True, exclude=hidden) for row in stage.rows]
        settings["row_names"] = [row.name for row in stage.rows]
    return settings


def _digest(value: Any) -> str:
    return blake3(json.dumps(value, ensure_ascii=False).encode()).hexdigest()
