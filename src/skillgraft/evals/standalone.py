"""`skillgraft eval`: several checkpoints on the same questions, outside a recipe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from skillgraft.checkpoint.default_model import resolve_base
from skillgraft.checkpoint.layout import read_layout
from skillgraft.checkpoint.tokenizer import tokenizer_identity
from skillgraft.data.tasks import read_questions
from skillgraft.evals import table
from skillgraft.evals.evaluation import Evaluation


def evaluate_models(
    models: Sequence[str],
    questions_file: Path,
    *,
    retention: bool = True,
    max_new_tokens: int = 32,
    say: Callable[[str], None] = lambda message: None,
) -> Evaluation:
    """Return the evaluation (rows with intervals, differences to the first model, examples) of `models`.

    Raises:
        SkillgraftError: a model or the questions cannot be read; found before the first model is loaded.
    """
    questions = read_questions(questions_file)
    directories = {model: resolve_base(model, say) for model in models}
    for directory in directories.values():
        read_layout(directory)
        tokenizer_identity(directory)
    from skillgraft.evals.answers import evaluate_checkpoint

    raws = {}
    for model, directory in directories.items():
        say(f"{model} …")
        raws[model] = evaluate_checkpoint(directory, questions, max_new_tokens=max_new_tokens, retention=retention)
    labels = {
        model: Path(model).name if len({Path(m).name for m in models}) == len(models) else model for model in models
    }
    cost = {"train_seconds": 0.0, "train_flops": 0.0}
    about = {
        model: {"model": model, "label": labels[model], "role": "other", "note": str(directories[model]), "cost": cost}
        for model in models
    }
    return {
        "stage": "eval",
        "questions": len(questions),
        "documents": len({question.document for question in questions}),
        "rows": [table.build_row(raws[model], questions, about[model]) for model in raws],
        "comparisons": table.differences(raws, labels, [(model, models[0]) for model in models[1:]], questions),
        "examples": table.examples(raws, labels, questions, {}),
    }
