"""The settings of a `single_passage` stage. Loads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from skillgraft.errors import RecipeError
from skillgraft.settings.base import BASE, Strict
from skillgraft.settings.text import WHOLE, TextSettings

START, LEARNT = "start", "sft"
"""The rows that every table has: the model that never read the passage, and the one that learnt it."""


class RowSkill(Strict):
    """One skill of one row; entries with the same `row` are added up."""

    skill: str = Field(description="stage, skill directory or name")
    scale: float = Field(1.0, allow_inf_nan=False, description="λ of this skill")
    row: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._+-]*$", description="the row's name; default: the skill's"
    )
    unread: bool = Field(False, description="put it on the model that never read the passage: a control")

    @property
    def name(self) -> str:
        """What the row is called."""
        return self.row or Path(self.skill).name


class SinglePassageStage(Strict):
    """For each document: learn it alone, answer its questions closed-book with and without skills, forget it again."""

    kind: Literal["single_passage"] = Field(description="one adapter a passage: learnt, scored, discarded")
    from_: str = Field(BASE, alias="from", description="stage, 'base' or checkpoint directory to start from each time")
    documents: Path = Field(description="folder of .md/.txt, JSONL with id, title, text, or a synthesize stage")
    limit_documents: int | None = Field(None, ge=1, description="the first so many passages only")
    questions: Path = Field(description="JSONL with document, question, answers")
    skills: list[RowSkill] = Field([], description="skills, each in a row of the table beside start and sft")
    lora: dict[str, Any] | None = Field({}, description="arguments of PEFT's LoraConfig; null: full fine-tuning")
    trainer: dict[str, Any] = Field({}, description="arguments of TRL's SFTConfig, for each passage anew")
    text: TextSettings = Field(WHOLE, description="how documents become rows")
    retention_passages: int = Field(
        0, ge=0, description="score general-knowledge questions in every row after the first so many passages"
    )
    max_new_tokens: int = Field(32, ge=1, description="longest answer, in tokens")
    batch_size: int = Field(64, ge=1, description="questions answered at once")

    @property
    def target(self) -> str:
        """What the skills are put on."""
        return self.from_

    @property
    def injected(self) -> list[tuple[str, float]]:
        """Every skill with its scale."""
        return [(each.skill, each.scale) for each in self.skills]

    @property
    def rows(self) -> dict[str, list[RowSkill]]:
        """The rows with skills by name, in the recipe's order."""
        found: dict[str, list[RowSkill]] = {}
        for each in self.skills:
            found.setdefault(each.name, []).append(each)
        return found


def check_single_passage(name: str, stage: SinglePassageStage) -> None:
    """Raise for a row that takes a name that every table has, or that is put on two models at once."""
    for row, skills in stage.rows.items():
        if row in (START, LEARNT):
            raise RecipeError(f"stages.{name}.skills: the row '{row}' is always there; give `row` another name")
        if len({each.unread for each in skills}) > 1:
            raise RecipeError(f"stages.{name}.skills: the row '{row}' is unread and is not; give it two names")
        if len({each.skill for each in skills}) < len(skills):
            raise RecipeError(
                f"stages.{name}.skills: the row '{row}' names a skill twice; give each λ a row of its own by `row`"
            )
