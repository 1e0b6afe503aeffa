"""Survey for a first recipe: documents, questions, the base, the machine. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skillgraft.checkpoint.default_model import DEFAULT_BASE, DEFAULT_PARAMETERS, local_base
from skillgraft.checkpoint.layout import read_layout
from skillgraft.checkpoint.tokenizer import TOKENIZER_FILE, tokenizer_identity
from skillgraft.data.documents import EXPECTED, Document, documents_table, read_documents
from skillgraft.data.tasks import check_questions, questions_path, read_questions
from skillgraft.data.text_files import passed_over
from skillgraft.data.words import count_words
from skillgraft.errors import CheckpointError, CompatibilityError, DataError, MissingPathError
from skillgraft.skills.names import RECALL, shipped_skills
from skillgraft.stages.costs import BYTES_PER_TOKEN, training_needs
from skillgraft.support.resources import Memory

QUESTIONS, DOCUMENTS = "questions.jsonl", "documents.jsonl"
COUNTED_BYTES = 8_000_000
"""Documents are tokenized up to about this many bytes; the count is extrapolated to the rest."""


@dataclass(frozen=True)
class Documents:
    """Documents by number and size; `counted` if the base's tokenizer gave `tokens`, not the bytes.

    `passed_over` are the other files of their folder, as `.png 2`.
    """

    path: Path
    count: int
    words: int
    tokens: int
    counted: bool
    first_id: str
    passed_over: str


@dataclass(frozen=True)
class Base:
    """The base as the recipe names it, its directory (None: to be fetched), its size, and whether it has a skill."""

    name: str
    directory: Path | None
    parameters: int | None
    fits_shipped: bool


@dataclass(frozen=True)
class Start:
    """Inputs that decide the recipe."""

    documents: Documents
    questions: Path | None
    question_count: int
    base: Base
    source: Path | None
    memory: Memory
    lora: bool


@dataclass(frozen=True)
class Cost:
    """Cost of running a whole recipe: seconds, bytes of memory at once, bytes of disk."""

    seconds: float
    memory: float
    disk: float


def survey(documents: Path, base: str, questions: Path | None, source: Path | None, memory: Memory) -> Start:
    """Survey the inputs; `SkillgraftError` for documents, questions or a base that are missing or wrong."""
    documents, beside = find_documents(documents)
    texts = read_documents(documents)
    known = inspect_base(base)
    if questions is None:
        questions = _own_questions(documents)
    tasks = read_questions(questions) if questions else []
    if questions:
        check_questions(questions, tasks, texts)
    if source is None and not known.fits_shipped and beside is not None and (beside / QUESTIONS).is_file():
        source = beside
    if source is not None:
        _check_source(source)
    return Start(
        count_documents(documents, texts, known.directory),
        questions,
        len(tasks),
        known,
        source,
        memory,
        needs_lora(known.parameters, memory),
    )


def find_documents(path: Path) -> tuple[Path, Path | None]:
    """Return the folder or file with documents, and one beside it on which a skill could be learnt.

    A folder that holds several sets is taken by its halves: `target` is learnt, `source` teaches a skill.
    """
    if not path.exists():
        raise MissingPathError(f"documents: {path} does not exist; expected {EXPECTED}: skillgraft init FOLDER")
    if not path.is_dir() or documents_table(path) is not None:
        return path, None
    sets = {file.parent.name: file.parent for file in sorted(path.glob(f"*/{DOCUMENTS}"))}
    if not sets:
        return path, None
    if "target" in sets:
        return sets["target"], sets.get("source")
    raise DataError(f"documents: {path} holds several sets: {', '.join(sets)}; name one: skillgraft init {path}/NAME")


def inspect_base(base: str) -> Base:
    """Inspect a base without reaching a network."""
    directory = local_base(base)
    shipped = shipped_skills().get(RECALL)
    if directory is None:
        return Base(
            base,
            None,
            DEFAULT_PARAMETERS if base == DEFAULT_BASE else None,
            bool(shipped) and base == _base_of(shipped),
        )
    layout = read_layout(directory)
    tokenizer_identity(directory)
    parameters = sum(math.prod(info.shape) for info in layout.tensors.values())
    return Base(base, directory, parameters, shipped is not None and _fits(directory, shipped))


def _base_of(skill: Path | None) -> str | None:
    from skillgraft.skills import load_skill

    return load_skill(skill).manifest.base.id if skill else None


def _fits(directory: Path, skill: Path) -> bool:
    from skillgraft.skills import check_compatibility, load_skill

    try:
        check_compatibility(read_layout(directory), load_skill(skill))
    except CompatibilityError:
        return False
    return True


def count_documents(path: Path, documents: Sequence[Document], base: Path | None) -> Documents:
    """Return number, words and tokens; where the base's tokenizer is not at hand, tokens follow from the bytes."""
    others = passed_over(path) if path.is_dir() and documents_table(path) is None else ""
    texts = [document.rendered() for document in documents]
    words = sum(count_words(text) for text in texts)
    size = sum(len(text.encode()) for text in texts)
    if base is None:
        return Documents(path, len(texts), words, round(size / BYTES_PER_TOKEN), False, documents[0].id, others)
    sample = texts[:: max(1, math.ceil(size / COUNTED_BYTES))]
    share = sum(len(text.encode()) for text in sample) / size
    tokens = round(_count_tokens(base / TOKENIZER_FILE, sample) / share)
    return Documents(path, len(texts), words, tokens, True, documents[0].id, others)


def _count_tokens(file: Path, texts: Sequence[str]) -> int:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"{file}: cannot be read as a tokenizer ({error}); save the tokenizer again") from error
    return sum(len(each.ids) for each in tokenizer.encode_batch(list(texts), add_special_tokens=False))


def needs_lora(parameters: int | None, memory: Memory) -> bool:
    """Return whether training every weight would not fit the memory that is free; LoRA too for an unknown size."""
    if parameters is None:
        return True
    free = memory.total if memory.available is None else memory.available
    return training_needs(parameters, None).memory > free


def _own_questions(documents: Path) -> Path | None:
    beside = questions_path(documents if documents.is_dir() else documents.parent)
    return beside if beside.is_file() else None


def _check_source(source: Path) -> None:
    if not source.is_dir():
        raise MissingPathError(f"source: {source} is not a folder; expected one with documents and {QUESTIONS}")
    check_questions(source, read_questions(source), read_documents(source))
