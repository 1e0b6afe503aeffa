"""Multiple-choice tasks as lm-evaluation-harness 0.4 defines them, read from where their questions lie. Loads no torch.

Prompts, choices and metrics are those of the harness's task files: `arc/arc_easy.yaml`, `arc/arc_challenge.yaml`,
`openbookqa/openbookqa.yaml` (version 1), `commonsense_qa/default.yaml`, `super_glue/boolq/default.yaml` (version 2). A
choice follows the prompt after one space. Records are those of the public sets, as JSONL or parquet; any other name is
a file of one's own with `id`, `question`, `choices` (texts) and `answer` (the index of the right one).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from skillgraft.data.documents import Document, read_documents
from skillgraft.data.tables import read_records
from skillgraft.data.text_files import is_document_file, whole_text
from skillgraft.errors import DataError, MissingPathError, did_you_mean
from skillgraft.settings.evaluation import RetentionSettings

GENERAL = "general"
"""The task whose questions ship with Skillgraft."""


@dataclass(frozen=True)
class Item:
    """One multiple-choice question as text: the prompt, the choices that may follow it, the index of the right one."""

    id: str
    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Task:
    """How a task's records become items. `metrics` begins with the one that retention is summed up by.

    `dataset` is the public set, `folder` its configuration's folder there and `split` what the harness evaluates on.
    """

    read: Callable[[Mapping[str, Any]], Item]
    metrics: tuple[str, ...] = ("acc_norm", "acc")
    dataset: str = ""
    folder: str = ""
    split: str = "validation"


@dataclass(frozen=True)
class Retention:
    """Everything that retention is measured on: items by task, held-out documents, and how those are cut."""

    tasks: Mapping[str, list[Item]]
    text: list[Document]
    window: int = 1024
    stride: int = 512


def _own(record: Mapping[str, Any]) -> Item:
    choices = tuple(record["choices"])
    return Item(str(record.get("id", "")), f"Question: {record['question']}\nAnswer:", choices, record["answer"])


def _arc(record: Mapping[str, Any]) -> Item:
    return Item(record["id"], f"Question: {record['question']}\nAnswer:", *_labelled(record))


def _openbookqa(record: Mapping[str, Any]) -> Item:
    return Item(record["id"], record["question_stem"], *_labelled(record))


def _commonsense_qa(record: Mapping[str, Any]) -> Item:
    letters = tuple("ABCDE")
    texts = record["choices"]["text"]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(letters, texts, strict=True))
    prompt = f"Question: {record['question'].strip()}\n{listed}\nAnswer:"
    return Item(record["id"], prompt, letters, letters.index(record["answerKey"]))


def _boolq(record: Mapping[str, Any]) -> Item:
    answer = record["answer"] if "answer" in record else record["label"]
    if answer not in (0, 1):
        raise ValueError(f"answer is {answer!r}, expected true or false")
    prompt = f"{record['passage']}\nQuestion: {record['question']}?\nAnswer:"
    return Item(str(record.get("idx", "")), prompt, ("no", "yes"), int(answer))


def _labelled(record: Mapping[str, Any]) -> tuple[tuple[str, ...], int]:
    choices = record["choices"]
    return tuple(choices["text"]), list(choices["label"]).index(record["answerKey"].lstrip())


TASKS: dict[str, Task] = {
    "arc_easy": Task(_arc, dataset="allenai/ai2_arc", folder="ARC-Easy", split="test"),
    "arc_challenge": Task(_arc, dataset="allenai/ai2_arc", folder="ARC-Challenge", split="test"),
    "openbookqa": Task(_openbookqa, dataset="allenai/openbookqa", folder="main", split="test"),
    "commonsense_qa": Task(_commonsense_qa, metrics=("acc",), dataset="tau/commonsense_qa", folder="data"),
    "boolq": Task(_boolq, metrics=("acc",), dataset="google/boolq", folder="data"),
    GENERAL: Task(_own, metrics=("acc_norm",)),
}


def metrics_of(task: str) -> tuple[str, ...]:
    """Return what a task is scored by, first what retention is summed up by; a file of one's own: acc_norm and acc."""
    return TASKS.get(task, Task(_own)).metrics


def read_retention(settings: bool | RetentionSettings) -> Retention | None:
    """Return what the `retention` setting of an eval stage asks for; None where it is switched off.

    Raises:
        MissingPathError: a task's questions or the held-out text are not there.
        DataError: a broken record, with its place.
    """
    if settings is False:
        return None
    return read_settings(RetentionSettings.model_validate({}) if settings is True else settings)


def read_settings(settings: RetentionSettings) -> Retention:
    """Return what a mapping of settings asks for; see `read_retention`."""
    tasks = {name: read_items(name, settings.data, settings.limit) for name in settings.tasks}
    text = [] if settings.text is None else _held_out(settings.text)
    return Retention(tasks, text, settings.window, settings.stride)


def read_items(name: str, data: Path | None, limit: int | None = None) -> list[Item]:
    """Return the first `limit` items of the task `name`, whose records lie in the folder `data`."""
    read = TASKS.get(name, Task(_own)).read
    items = []
    for where, record in task_records(name, data, limit):
        try:
            item = read(record)
            _check(item)
        except KeyError as error:
            raise DataError(f"{where}: {error} is missing; the record of {name} has {sorted(record)}") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: no question of {name}: {error}") from error
        items.append(item)
    if not items:
        raise DataError(f"retention: {name} has no question in {data}")
    return items


def _check(item: Item) -> None:
    if len(item.choices) < 2 or not all(isinstance(text, str) and text for text in item.choices):
        raise ValueError(f"choices are {item.choices!r}, expected two or more texts")
    if isinstance(item.answer, bool) or not isinstance(item.answer, int) or not 0 <= item.answer < len(item.choices):
        raise ValueError(f"answer is {item.answer!r}, expected the index of one of {len(item.choices)} choices")


def task_records(name: str, data: Path | None, limit: int | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Return the first `limit` records of a task, each with its place; see `_files` for where they are looked for."""
    records: list[tuple[str, dict[str, Any]]] = []
    for file in _files(name, data):
        for pair in read_records(file):
            if limit is not None and len(records) == limit:
                return records
            records.append(pair)
    return records


def _files(name: str, data: Path | None) -> list[Path]:
    """Return the files of a task: `data/NAME.jsonl` or `.parquet`, or the public set's split as the hub lays it out.

    That lies in `data/NAME/`, or by the set's own name and configuration in `data/ai2_arc/ARC-Easy/test-*.parquet`.
    """
    if name == GENERAL:
        return [Path(str(resources.files("skillgraft.evals").joinpath("retention.jsonl")))]
    if data is None:
        hint = "" if name in TASKS else did_you_mean(name, TASKS)
        raise MissingPathError(f"retention: the task '{name}' needs data, the folder in which its questions lie{hint}")
    if not data.is_dir():
        raise MissingPathError(f"retention: {data} is not a directory; expected the folder with {name}.jsonl")
    for suffix in (".jsonl", ".parquet"):
        if (data / f"{name}{suffix}").is_file():
            return [data / f"{name}{suffix}"]
    task = TASKS.get(name, Task(_own))
    folders = [data / name, data / name / task.folder]
    if task.dataset:
        folders.append(data / task.dataset.partition("/")[2] / task.folder)
    for folder in folders:
        for suffix in (".jsonl", ".parquet"):
            if shards := sorted(folder.glob(f"{task.split}*{suffix}")):
                return shards
    public = f" (the public set is {task.dataset})" if task.dataset else did_you_mean(name, TASKS)
    raise MissingPathError(
        f"retention: no questions of '{name}' in {data}; expected {name}.jsonl, {name}.parquet or "
        f"{folders[-1].relative_to(data)}/{task.split}*.parquet there{public}"
    )


def _held_out(path: Path) -> list[Document]:
    if not path.exists():
        raise MissingPathError(f"retention: text: {path} does not exist; expected text, a folder of it, or JSONL")
    if path.is_dir() or not is_document_file(path):
        return read_documents(path)
    text = whole_text(path)
    if not text.strip():
        raise DataError(f"retention: text: {path} is empty")
    return [Document(path.stem, "", text)]
