"""Checks of a training stage's data against its model when the plan is made: what training would refuse hours later.

Each runs on the rows and prompts that training would make, from the tokenizer alone; no weights are read. Of more text
than `_READ` characters only the longest documents and titles are tokenized.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, SFTConfig

from skillgraft.data.documents import Document
from skillgraft.data.tasks import Question, Task
from skillgraft.domains.kind import Domain
from skillgraft.errors import TrainingError
from skillgraft.models.prompts import check_prompts_fit, prompt_ids
from skillgraft.settings.text import WHOLE, TextSettings
from skillgraft.train.examples import Row, document_rows, question_rows, replay_rows

_READ, _LONGEST = 8_000_000, 500


def check_learnable(
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[Document],
    questions: Sequence[Question],
    args: SFTConfig,
    context: int | None,
    *,
    text: TextSettings = WHOLE,
    replay: tuple[Sequence[str], float] = ((), 0.0),
    stage: str = "sft",
) -> None:
    """Raise what fine-tuning on these documents and questions would raise before its first step.

    Raises:
        TrainingError: a row that does not fit, or too few rows for a step.
        DataError: less replay text than is asked for.
    """
    whole = bool(replay[1]) or sum(len(document.text) for document in documents) <= _READ
    rows = document_rows(tokenizer, documents if whole else _longest(documents), args.max_length, text)
    rows += question_rows(tokenizer, questions, args.max_length)
    check_rows(rows, args, context, stage, whole)
    own = sum(len(row["input_ids"]) for row in rows)
    if replay[1]:
        replay_rows(tokenizer, replay[0], round(replay[1] * own), args.max_length, 0)


def _longest(documents: Sequence[Document]) -> list[Document]:
    by_text = sorted(documents, key=lambda document: len(document.text), reverse=True)[:_LONGEST]
    by_title = sorted(documents, key=lambda document: len(document.title), reverse=True)[:_LONGEST]
    return [*by_text, *by_title]


def check_rows(rows: Sequence[Row], args: SFTConfig, context: int | None, stage: str, whole: bool = True) -> None:
    """Raise `TrainingError` for a row longer than the model's context, and for fewer `rows` than one batch needs.

    `whole` says that these are all the rows there are.
    """
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    if context is not None and longest > context:
        raise TrainingError(
            f"{stage}: a row of {longest} tokens does not fit into the model's context of {context}; lower "
            "text.chunk_tokens or trainer.max_length, which cut documents into chunks"
        )
    size = args.per_device_train_batch_size
    if whole and rows and args.dataloader_drop_last and len(rows) < size:
        raise TrainingError(
            f"{stage}: {len(rows)} rows are fewer than one batch of {size}, and trainer.dataloader_drop_last leaves "
            "such a batch out: nothing would be learnt; lower per_device_train_batch_size, or leave it out"
        )


def check_questions_suffice(count: int, args: GRPOConfig) -> None:
    """Raise `TrainingError` for fewer questions than one step of RL needs."""
    needed = args.generation_batch_size // args.num_generations
    if count < needed:
        raise TrainingError(
            f"rl: {count} questions are left, one step needs {needed}; give more questions, or lower "
            "trainer.per_device_train_batch_size"
        )


def check_asked(
    tokenizer: PreTrainedTokenizerBase,
    domain: Domain,
    tasks: Sequence[Task],
    context: int | None,
    new_tokens: int,
    setting: str,
) -> None:
    """Raise `DataError` for a task's prompt that does not fit into the model's context with its answer.

    `setting` is what says how long an answer may be.
    """
    if context is not None:
        sizes = list(map(len, prompt_ids(tokenizer, [domain.prompt(tokenizer, task) for task in tasks])))
        check_prompts_fit(sizes, new_tokens, context, "questions", f"shorten it, or lower {setting}")
