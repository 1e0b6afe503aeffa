"""Tasks: what a model is asked, and the closed-book questions of the knowledge domain, read from tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from skillgraft.data.documents import Document, normal_id, string_field
from skillgraft.data.tables import TABLE_KINDS, read_records, table_in
from skillgraft.data.text_files import is_document_file
from skillgraft.errors import DataError, MissingPathError
from skillgraft.support.digest import digest

EXPECTED = f"a table ({TABLE_KINDS}) with document, question, answers"


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
    """Return the file that questions at `path` stand in: a folder's `questions.…`, or `path` itself."""
    return (table_in(path, "questions") or path / "questions.jsonl") if path.is_dir() else path


def read_questions(path: Path, documents: Sequence[Document] | None = None) -> list[Question]:
    """Return the questions of the table `path` (or of `path/questions.…`), in file order.

    A record has `document`, `question` and `answers`: one or several texts, SQuAD's `{"text": […]}`, or TriviaQA's
    `answer: {"value", "aliases"}`. SQuAD's nested JSON is read too, each paragraph being a document (`title/number`);
    of version 2 without the questions that have no answer. With `documents`, only questions about one of them are kept,
    since a limit may have left documents out.

    Raises:
        MissingPathError: no such file.
        DataError: no question left, a broken record, an empty question or answer.
    """
    file = questions_path(path)
    if not file.is_file():
        raise MissingPathError(f"questions: {file} does not exist; expected {EXPECTED}")
    if is_document_file(file):
        raise DataError(f"questions: {file} is text, expected {EXPECTED}")
    questions = [question for where, record in read_records(file) for question in _questions(record, where)]
    if not questions:
        raise DataError(f"questions: {file} holds none; expected {EXPECTED}")
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


def _questions(record: dict[str, Any], where: str) -> Iterator[Question]:
    """Yield a record's question, or those of a paragraph of SQuAD's nested JSON that have an answer."""
    if not isinstance(record.get("qas"), list):
        yield _question(record, where)
        return
    for number, question in enumerate(record["qas"], start=1):
        if not isinstance(question, dict):
            raise DataError(f"{where}, question {number}: got a {type(question).__name__}, expected an object")
        if not question.get("is_impossible"):
            yield _question({**question, "document": record["id"]}, f"{where}, question {number}")


def _question(record: dict[str, Any], where: str) -> Question:
    answers = _answers(record, where)
    question = string_field(record, "question", where)
    if not question.strip():
        raise DataError(f"{where}: 'question' is empty")
    return Question(normal_id(string_field(record, "document", where)), question, answers)


def _answers(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """Return the gold answers, of a number its digits."""
    given = next((record[key] for key in ("answers", "answer") if record.get(key) is not None), None)
    if given is None and (hint := _shape(record)):
        raise DataError(f"{where}: {hint}; expected document, question, answers; the record has {sorted(record)}")
    texts = given
    if isinstance(given, dict):  # SQuAD's rows, TriviaQA's
        texts = given["text"] if "text" in given else [given.get("value"), *(given.get("aliases") or [])]
    if isinstance(texts, str) and texts.lstrip().startswith('["'):  # a list in a cell of CSV
        texts = _list(texts)
    texts = texts if isinstance(texts, list) else [texts]
    texts = [text.get("text") if isinstance(text, dict) else text for text in texts]  # SQuAD's nested JSON
    texts = [str(text) if type(text) in (int, float) else text for text in texts]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"{where}: 'answers' is {given!r:.200}, expected one or more non-empty strings; leave out a question that "
            "has no answer"
        )
    return tuple(dict.fromkeys(texts))


def _list(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _shape(record: Mapping[str, Any]) -> str:
    """Say which other form of data a record seems to have, and what of it to rename."""
    for keys, hint in _OTHER_SHAPES.items():
        if set(keys) <= record.keys():
            return hint
    return ""


_OTHER_SHAPES = {
    ("instruction", "output"): "this looks like a row for instruction tuning: rename instruction and output",
    ("messages",): "this looks like a chat: write its user's message as question and its answer as answers",
    ("conversations",): "this looks like a chat: write its user's message as question and its answer as answers",
    ("prompt", "completion"): "this looks like a row of prompt and completion: rename them",
    ("query", "response"): "this looks like a row of query and response: rename them",
    ("choices",): "this looks like multiple choice, which `retention: {tasks: …}` scores",
}
