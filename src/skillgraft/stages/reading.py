"""Reading a stage's documents and questions when a run is planned: checked, chosen, and digested. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skillgraft.data.documents import Document, read_documents
from skillgraft.data.slices import choose
from skillgraft.data.synthesis.prompt_templates import read_styles
from skillgraft.data.tasks import Question, check_questions, read_questions
from skillgraft.errors import RecipeError
from skillgraft.settings.base import stage_named
from skillgraft.support.digest import digest
from skillgraft.support.extensions import origin


def read_data(settings: Any) -> dict[str, str]:
    """Return the digests of the documents and questions at a stage's paths, after checking them against each other."""
    every, chosen = documents_of(settings)
    questions = questions_of(settings, every, chosen)
    return digests(chosen, questions)


def documents_of(settings: Any) -> tuple[list[Document], list[Document]]:
    """Return all documents at the stage's path, and those that its settings choose; none where a stage writes them."""
    path = path_of(settings, "documents")
    every = read_documents(path) if path else []
    limit, part = (getattr(settings, name, None) for name in ("limit_documents", "part"))
    return every, choose(every, limit, part)


def questions_of(settings: Any, every: Sequence[Document], about: Sequence[Document]) -> list[Question]:
    """Return the stage's questions about the documents `about`; none without questions, or where a stage writes them.

    Raises:
        RecipeError: the path is a folder.
        DataError: a question about none of the documents `every`.
    """
    path = path_of(settings, "questions")
    if path is None:
        return []
    if path.is_dir():
        inside = "questions.jsonl" if (path / "questions.jsonl").is_file() else "a JSONL file"
        raise RecipeError(f"questions: {path} is a folder; name the file itself: {inside} in it")
    questions = read_questions(path)
    if every:
        check_questions(path, questions, every)
    return read_questions(path, about) if about else questions


def digests(documents: Sequence[Document], questions: Sequence[Question]) -> dict[str, str]:
    """Return the digests of documents and questions, of what there is."""
    return ({"documents": documents_digest(documents)} if documents else {}) | (
        {"questions": digest([[q.document, q.question, *q.answers] for q in questions])} if questions else {}
    )


def documents_digest(documents: Sequence[Document]) -> str:
    """Return the digest of documents, whatever file they came from."""
    return digest([[d.id, d.title, d.text] for d in documents])


def prompts_digest(styles: Sequence[str], folder: Path | None) -> str:
    """Return the digest of the prompt files of `styles`."""
    return digest([[s.name, s.version, s.prompt, s.kinds] for s in read_styles(list(styles), folder)])


def origins(**used: tuple[str, Any]) -> dict[str, str]:
    """Return the versions of the extensions that a stage uses: what it is -> `package==version`, without built-in ones.

    `used` maps what it is to (group, name); names that are None count nothing.
    """
    versions = {what: origin(group, str(name)) for what, (group, name) in used.items() if name is not None}
    return {f"extension {what}": version for what, version in versions.items() if version}


def adapter_origin(settings: Any) -> dict[str, str]:
    """Return the version of the extension that a training stage's adapter comes from."""
    adapt = settings.adapt
    return origins(adapt=("adapters", adapt.get("kind") if adapt else None))


def path_of(settings: Any, field: str) -> Path | None:
    """Return the path in a data field; None for none, or for a stage, whose own address stands for what it writes."""
    value = getattr(settings, field, None)
    return None if value is None or stage_named(value) is not None else value
