"""Tasks: what a model is asked, and the closed-book questions of the knowledge domain, read from JSONL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from skillgraft.data.documents import Document, read_records, string_field
from skillgraft.errors import DataError, MissingPathError
from skillgraft.support.digest import digest


class Task(Protocol):
    """What a model is asked once; a domain reads them, and its prompts, rewards and metrics know more of them.

    `id` tells it from the others, `cluster` groups tasks that depend on each other (those about one document), which
    intervals redraw together; `prompt` is the user's text, `answers` are the right ones.
    """

    @property
    def id(self) -> str:
        """What tells the task from the others."""

    @property
    def cluster(self) -> str:
        """The group of tasks that depend on each other."""

    @property
    def prompt(self) -> str:
        """The text that is asked."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The right answers."""


@dataclass(frozen=True)
class Question:
    """The task of the knowledge domain: a closed-book question about one document, with one or more gold answers."""

    document: str
    question: str
    answers: tuple[str, ...]

    @property
    def id(self) -> str:
        """The digest of document and question."""
        return digest([self.document, self.question])[:16]

    @property
    def cluster(self) -> str:
        """The document: questions about one depend on each other."""
        return self.document

    @property
    def prompt(self) -> str:
        """The question."""
        return self.question


def questions_path(path: Path) -> Path:
    """Return the file that questions at `path` stand in: a folder's `questions.jsonl`, or `path` itself."""
    return path / "questions.jsonl" if path.is_dir() else path


def read_questions(path: Path, documents: Sequence[Document] | None = None) -> list[Question]:
    """Return the questions of the JSONL file `path` (or `path/questions.jsonl`), in file order.

    With `documents`, only those about one of them are kept, since a limit may have left documents out.

    Raises:
        MissingPathError: no such file.
        DataError: no question left, a broken line, an empty question or answer.
    """
    file = questions_path(path)
    if not file.is_file():
        raise MissingPathError(
            f"questions: {file} does not exist; expected a JSONL file with document, question, answers"
        )
    questions = [_question(record, where) for where, record in read_records(file)]
    if not questions:
        raise DataError(f"questions: {file} holds none; expected JSONL lines with document, question, answers")
    if documents is None:
        return questions
    known = {document.origin for document in documents}
    about = [question for question in questions if question.document in known]
    if not about:
        raise DataError(
            f"questions: {file} names no known document: it asks about '{questions[0].document}', "
            f"the documents are '{documents[0].origin}'{' and others' if len(documents) > 1 else ''}; "
            "'document' must be a document's id"
        )
    return about


def check_questions(path: Path, questions: Sequence[Question], all_documents: Sequence[Document]) -> None:
    """Raise `DataError` for the first question that names no document at all (a limit set aside)."""
    known = {document.origin for document in all_documents}
    for question in questions:
        if question.document not in known:
            raise DataError(
                f"questions: {path} asks about the document '{question.document}', which is not among the "
                f"{len(known)} documents; 'document' must be a document's id"
            )


def _question(record: dict[str, Any], where: str) -> Question:
    answers = record.get("answers")
    if isinstance(answers, str):
        answers = [answers]
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise DataError(f"{where}: 'answers' is {answers!r}, expected a list of one or more non-empty strings")
    question = string_field(record, "question", where)
    if not question.strip():
        raise DataError(f"{where}: 'question' is empty")
    return Question(string_field(record, "document", where), question, tuple(answers))
