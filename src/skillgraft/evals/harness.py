"""The same tasks by lm-evaluation-harness (the optional extra `eval`), on the same questions, for whoever wants both.

Prompts, choices and metrics are the harness's own task files; only where the questions are read from is changed, to the
very records that `evals.tasks` reads, so nothing is fetched.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from skillgraft.errors import RecipeError
from skillgraft.evals.tasks import task_records

FILES = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "commonsense_qa": "commonsense_qa/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
}
"""The harness's own task files, in its folder `tasks`."""

OWN = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "answer",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
"""A task file for questions in our own format."""


def require_harness() -> None:
    """Raise `RecipeError` where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError("lm-eval is not installed: pip install 'skillgraft[eval]'")


def run_harness(
    directory: Path, tasks: Sequence[str], data: Path | None, limit: int | None, dtype: str, batch_size: int = 16
) -> dict[str, dict[str, list[float]]]:
    """Return lm-evaluation-harness's scores of the checkpoint at `directory`: task -> metric -> 1.0 or 0.0 an item.

    The items are those of `read_items(task, data, limit)` in their order; `dtype` is what the weights are held in.

    Raises:
        RecipeError: lm-eval is not installed.
        SkillgraftError: a task's questions cannot be read.
    """
    require_harness()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from skillgraft.models.precision import device

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="skillgraft-lm-eval-") as folder:
        files = [str(_task_file(task, data, limit, Path(folder))) for task in tasks]
        evaluated = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(directory), "dtype": dtype},
            tasks=files,
            task_manager=TaskManager(include_defaults=False),
            device=str(device()),
            batch_size=batch_size,
            bootstrap_iters=0,
            log_samples=True,
        )
    scores = {}
    for task in tasks:
        samples = sorted(evaluated["samples"][task], key=lambda sample: sample["doc_id"])
        metrics = [name for name in ("acc", "acc_norm") if name in samples[0]]
        scores[task] = {metric: [float(sample[metric]) for sample in samples] for metric in metrics}
    return scores


def _task_file(task: str, data: Path | None, limit: int | None, folder: Path) -> Path:
    """Write the task's questions, and a task file that includes the harness's own, into `folder`; return the file."""
    import lm_eval

    questions = folder / f"{task}.jsonl"
    records = [_as_the_harness_reads(task, record) for _, record in task_records(task, data, limit)]
    questions.write_text("".join(json.dumps(record) + "\n" for record in records))
    source: dict[str, Any] = {
        "task": task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(questions)}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "validation_split": None,
        "training_split": None,
    }
    definition = {"include": str(Path(lm_eval.__file__).parent / "tasks" / FILES[task])} if task in FILES else OWN
    file = folder / f"{task}.yaml"
    file.write_text(yaml.safe_dump(definition | source, sort_keys=False))
    return file


def _as_the_harness_reads(task: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with the field names of the copy of a set that the harness loads (BoolQ's of SuperGLUE)."""
    if task == "boolq" and "label" not in record:
        return {**record, "label": int(record["answer"])}
    return dict(record)
