"""`skillgraft retention`: what several checkpoints retain, the first being the one before adapting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from skillgraft.checkpoint.default_model import resolve_base
from skillgraft.checkpoint.layout import context_of, read_layout
from skillgraft.checkpoint.tokenizer import tokenizer_identity
from skillgraft.evals import table
from skillgraft.evals.harness import require_harness, run_harness
from skillgraft.evals.tasks import read_settings
from skillgraft.settings.evaluation import RetentionSettings, check_retention, check_window


def compare_retention(
    models: Sequence[str],
    settings: RetentionSettings,
    *,
    lm_eval: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Return `models`, each with its measures, intervals and paired changes from the first, and their cost.

    With `lm_eval` each has `lm_eval` too: for every task and metric lm-evaluation-harness's mean, and on how many of
    the items it says the same.

    Raises:
        SkillgraftError: a model, a task or the text cannot be read; found before the first model is loaded.
    """
    check_retention("retention", settings)
    retention = read_settings(settings)
    if lm_eval:
        require_harness()
    directories = {model: resolve_base(model, say) for model in models}
    for model, directory in directories.items():
        check_window("retention", settings, model, context_of(read_layout(directory).config))
        tokenizer_identity(directory)
    from skillgraft.evals.retention import measure
    from skillgraft.models.answering import load

    raws: dict[str, dict[str, Any]] = {}
    rows = []
    for model, directory in directories.items():
        say(f"{model} …")
        loaded, tokenizer = load(directory)
        raw = raws[model] = measure(loaded, tokenizer, retention)
        before = None if len(raws) == 1 else raws[models[0]]
        row = {"model": model, "retained": table.retained(raw, before), "seconds": raw["retention_seconds"]}
        if lm_eval and retention.tasks:
            say(f"{model} by lm-eval …")
            dtype = str(loaded.dtype).removeprefix("torch.")
            theirs = run_harness(directory, list(retention.tasks), settings.data, settings.limit, dtype)
            row["lm_eval"] = _agreement(raw["tasks"], theirs)
        rows.append(row | {"flops": raw["retention_flops"]})
    text = raws[models[0]]["text"]
    return {"models": rows, "text": {name: text[name] for name in ("window", "stride")} if text else None}


def _agreement(ours: dict[str, Any], theirs: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    return [
        {
            "task": task,
            "metric": metric,
            "mean": sum(scores) / len(scores),
            "n": len(scores),
            "same": sum(a == b for a, b in zip(ours[task][metric], scores, strict=True)),
        }
        for task, by_metric in theirs.items()
        for metric, scores in by_metric.items()
        if metric in ours[task]
    ]
