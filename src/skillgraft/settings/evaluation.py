"""What an `eval` stage sets by mappings: retention, and rows with more in the prompt. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from skillgraft.errors import RecipeError
from skillgraft.settings.base import Strict


class RetentionSettings(Strict):
    """What adapting must not damage: multiple-choice tasks by likelihood, and how well held-out text is predicted."""

    tasks: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]] = Field(
        ["general"],
        description="arc_easy, arc_challenge, openbookqa, commonsense_qa, boolq; general: the questions that ship; "
        "or a file of your own in `data`",
    )
    data: Path | None = Field(None, description="folder with TASK.jsonl, TASK.parquet or the public sets as they are")
    limit: int | None = Field(None, ge=1, description="the first so many questions of each task")
    text: Path | None = Field(None, description="held-out text: .txt, .md, a folder of them, or JSONL with id, text")
    window: int = Field(1024, ge=2, description="tokens that the model sees at once of held-out text")
    stride: int = Field(512, ge=1, description="tokens of held-out text that are scored in one window after the first")


def _form(value: Any) -> str:
    return "settings" if isinstance(value, dict | RetentionSettings) else "switch"


RetentionField = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[RetentionSettings, Tag("settings")], Discriminator(_form)
]
"""`true`: the questions that ship with Skillgraft; `false`: none; a mapping says what else is scored."""


class EvalRow(Strict):
    """One more row of the table: a model, as it is, with documents or worked examples in its prompt."""

    model: str = Field(description="stage, 'base' or checkpoint directory")
    context: Literal["gold", "bm25"] | None = Field(
        None, description="open book: gold puts the question's own document into the prompt, bm25 what it finds"
    )
    top_k: int = Field(3, ge=1, description="chunks that bm25 puts into the prompt, the best first")
    chunk_tokens: int = Field(256, ge=16, description="longest chunk that bm25 searches")
    overlap_tokens: int = Field(32, ge=0, description="tokens that a chunk shares with the one before")
    shots: int = Field(0, ge=0, description="worked examples in the prompt, drawn anew for each question")
    shots_from: Path | None = Field(None, description="JSONL with document, question, answers to draw examples from")
    label: str | None = Field(None, description="what the table calls the row")

    @property
    def id(self) -> str:
        """What tells the row from the others of its table: `base+bm25-3`, `sft+gold`, `base+5-shot`."""
        what = f"{self.shots}-shot" if self.shots else "gold" if self.context == "gold" else f"bm25-{self.top_k}"
        return f"{self.model}+{what}"

    @property
    def name(self) -> str:
        """The row's id without the folder of a checkpoint from elsewhere."""
        return Path(self.id).name


def check_eval(name: str, stage: Any) -> None:
    """Raise for rows that put nothing or twice something into the prompt, one label twice, retention without data."""
    if isinstance(stage.retention, RetentionSettings):
        check_retention(f"stages.{name}.retention", stage.retention)
    _check_rows(f"stages.{name}.rows", stage.rows, stage.documents)
    labels = [*stage.labels.values(), *(row.label for row in stage.rows if row.label is not None)]
    for label in labels:
        if labels.count(label) > 1:
            raise RecipeError(f"stages.{name}: two rows are labelled '{label}'; give each a label of its own")


def check_retention(where: str, settings: RetentionSettings) -> None:
    """Raise for tasks that stand there twice, nothing to score, and windows without text or that leave text out."""
    for task in settings.tasks:
        if settings.tasks.count(task) > 1:
            raise RecipeError(f"{where}.tasks: '{task}' stands there twice; name each task once")
    if not settings.tasks and settings.text is None:
        raise RecipeError(f"{where}: neither tasks nor text are given; retention: false scores none")
    for field in ("window", "stride"):
        if settings.text is None and field in settings.model_fields_set:
            raise RecipeError(f"{where}.{field}: says how held-out text is cut; it needs text, or leave it out")
    if settings.stride > settings.window:
        raise RecipeError(
            f"{where}.stride: {settings.stride} is more than the window of {settings.window} tokens; lower it"
        )


def check_window(where: str, settings: RetentionSettings, model: str, context: int | None) -> None:
    """Raise for a window that was asked for and is more than `model` can see; the default is cut to what it can."""
    if context is not None and "window" in settings.model_fields_set and settings.window > context:
        raise RecipeError(
            f"{where}.window: {settings.window} tokens are more than the {context} that '{model}' can see; lower it"
        )


def _check_rows(where: str, rows: Sequence[EvalRow], documents: Path | None) -> None:
    seen: set[str] = set()
    for row in rows:
        if bool(row.context) == bool(row.shots):
            got = "both are given" if row.context else "neither is given"
            raise RecipeError(f"{where}: {row.model}: {got}, context or shots; a row needs one of them")
        if bool(row.shots) != (row.shots_from is not None):
            raise RecipeError(f"{where}: {row.model}: shots and shots_from belong together")
        if row.context and documents is None:
            raise RecipeError(f"{where}: {row.model}: context: {row.context} needs the stage's documents")
        for field in ("top_k", "chunk_tokens", "overlap_tokens"):
            if row.context != "bm25" and field in row.model_fields_set:
                raise RecipeError(f"{where}: {row.model}: {field} is for context: bm25; leave it out")
        if row.context == "bm25" and row.overlap_tokens >= row.chunk_tokens:
            raise RecipeError(
                f"{where}: {row.model}: overlap_tokens: {row.overlap_tokens} leaves chunks of {row.chunk_tokens} "
                "tokens nothing new; lower it"
            )
        if row.id in seen:
            raise RecipeError(f"{where}: two rows are '{row.id}'; keep one, or change top_k or shots")
        seen.add(row.id)
