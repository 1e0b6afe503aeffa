"""Settings of evaluation: retention, rows with more in the prompt, single passages. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from skillgraft.errors import RecipeError
from skillgraft.settings.base import ADAPT, AdapterSettings, DataPath, PromptSettings, Ref, Settings, TrainerArguments
from skillgraft.settings.text import WHOLE, TextSettings


class RetentionSettings(Settings):
    """What adapting must not damage: multiple-choice tasks by likelihood, and how well held-out text is predicted."""

    tasks: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]] = Field(
        ["general"],
        description="arc_easy, arc_challenge, openbookqa, commonsense_qa, boolq; general: the questions that ship; "
        "or a file of your own in `data`",
    )
    data: Annotated[Path | None, DataPath()] = Field(
        None, description="folder with TASK.jsonl, TASK.parquet or the public sets as they are"
    )
    limit: int | None = Field(None, ge=1, description="limit to the first N questions of each task")
    text: Annotated[Path | None, DataPath()] = Field(
        None, description="held-out text: a text file, a folder of them, or a table with id, text"
    )
    window: int = Field(1024, ge=2, description="tokens that the model sees at once of held-out text")
    stride: int = Field(512, ge=1, description="tokens of held-out text that are scored in one window after the first")


def _form(value: Any) -> str:
    return "settings" if isinstance(value, dict | RetentionSettings) else "switch"


RetentionField = Annotated[
    Annotated[bool, Tag("switch")] | Annotated[RetentionSettings, Tag("settings")], Discriminator(_form)
]
"""`true`: the questions that ship with Skillgraft; `false`: none; a mapping says what else is scored."""


class EvalRow(Settings):
    """One more row of the table: a model, as it is, with documents or worked examples in its prompt."""

    model: Annotated[str, Ref("checkpoint")] = Field(description="stage, 'base' or checkpoint directory")
    context: Literal["gold", "bm25"] | None = Field(
        None, description="open book: gold puts the question's own document into the prompt, bm25 what it finds"
    )
    top_k: int = Field(3, ge=1, description="chunks that bm25 puts into the prompt, the best first")
    chunk_tokens: int = Field(256, ge=16, description="longest chunk that bm25 searches")
    overlap_tokens: int = Field(32, ge=0, description="tokens that a chunk shares with the one before")
    shots: int = Field(0, ge=0, description="worked examples in the prompt, drawn anew for each question")
    shots_from: Annotated[Path | None, DataPath()] = Field(
        None, description="table (.jsonl, .csv, …) with document, question, answers to draw examples from"
    )
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


START, LEARNT = "start", "sft"
"""The rows that every table has: the model that never read the passage, and the one that learnt it."""


class RowSkill(Settings):
    """One skill of one row; entries with the same `row` are added up."""

    skill: Annotated[str, Ref("skill")] = Field(description="stage, skill directory or name")
    scale: float = Field(1.0, allow_inf_nan=False, description="λ of this skill")
    row: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]*$", description="the row's name; default: the skill's"
    )
    unread: bool = Field(False, description="put it on the model that never read the passage: a control")

    @property
    def name(self) -> str:
        """What the row is called."""
        return self.row or Path(self.skill).name


class SinglePassageSettings(PromptSettings):
    """How each passage is learnt alone, and which rows are asked about it."""

    skills: list[RowSkill] = Field([], description="skills, each in a row of the table beside start and sft")
    adapt: AdapterSettings = Field({"kind": "lora"}, description=ADAPT)
    trainer: TrainerArguments = Field({}, description="arguments of TRL's SFTConfig, for each passage anew")
    text: TextSettings = Field(WHOLE, description="how documents become training examples")
    retention_passages: int = Field(
        0, ge=0, description="score general-knowledge questions in every row after the first N passages"
    )
    max_new_tokens: int = Field(32, ge=1, description="longest answer, in tokens")
    batch_size: int = Field(64, ge=1, description="questions answered at once")

    @property
    def rows(self) -> dict[str, list[RowSkill]]:
        """The rows with skills by name, in the recipe's order."""
        rows: dict[str, list[RowSkill]] = {}
        for each in self.skills:
            rows.setdefault(each.name, []).append(each)
        return rows


class EvaluationSettings(PromptSettings):
    """Which models are asked, with what in the prompt, and how they answer."""

    models: Annotated[list[str], Ref("checkpoint")] = Field(
        min_length=1, description="stages, 'base' or checkpoint directories: the table's closed-book rows"
    )
    rows: list[EvalRow] = Field([], description="rows with documents or worked examples in the prompt")
    retention: RetentionField = Field(
        True, description="true: score the general-knowledge questions that ship; or tasks, data, limit, text"
    )
    max_new_tokens: int = Field(32, ge=1, description="longest answer, in tokens")
    batch_size: int = Field(64, ge=1, description="questions answered at once")
