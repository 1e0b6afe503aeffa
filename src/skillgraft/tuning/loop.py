"""Tuning loop: candidates scored on development questions, a winner, and its one score on others. Loads no torch.

1. check the recipe, what varies, and that no question is in both sets
2. try the target alone, the recipe as it is, and what the algorithm proposes; log every trial
3. write the winner as a recipe and as a checkpoint
4. score it, and the target, once on the report questions
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from skillgraft.arithmetic.merge_schema import MergeRecipe
from skillgraft.arithmetic.merging import as_recipe, merge
from skillgraft.arithmetic.plan import plan_merge
from skillgraft.checkpoint.safe_read import read_json_object
from skillgraft.data.metrics import METRICS
from skillgraft.data.tasks import Question, read_questions
from skillgraft.errors import CheckpointError, DataError, RecipeError, did_you_mean
from skillgraft.evals.intervals import bootstrap
from skillgraft.evals.overlap import shared_questions
from skillgraft.skills.library import resolve_skill
from skillgraft.support.atomic import atomic_write_json, atomic_write_text
from skillgraft.support.digest import digest
from skillgraft.tuning.algorithms import ALGORITHMS, Points
from skillgraft.tuning.space import WEIGHTS, Range, Space, space_of
from skillgraft.tuning.trials import LIKELIHOOD, Log, Trial, open_log

TUNING_METRICS = (*METRICS, LIKELIHOOD)
RECIPE_FILE, CHECKPOINT, RESULT_FILE = "best.yaml", "best", "result.json"

Scorer = Callable[[MergeRecipe, Sequence[Question]], Mapping[str, Sequence[float]]]
"""Returns every metric's value for each question; `live.LiveModel.score` unless another is given."""


def tune(
    recipe: MergeRecipe | Mapping[str, Any] | str | os.PathLike[str],
    questions: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    vary: Mapping[str, Range] | None = None,
    per_layer: int | None = None,
    metric: Mapping[str, float] | None = None,
    by: str | None = None,
    trials: int = 30,
    seed: int = 0,
    report_questions: str | os.PathLike[str] | None = None,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    threads: int | None = None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
    scorer: Scorer | None = None,
) -> dict[str, Any]:
    """Tune what `vary` opens in a merge recipe for the best `metric` on `questions`, and write the winner to `out`.

    `vary` gives ranges by name: `weights` (all operands', by default 0 to 1.5; with `per_layer`, one for each
    of that many groups of neighbouring layers) and the method's own numbers, such as `density`. `metric` gives weights
    by name: f1, containment, exact_match, answer_likelihood. `by`: cmaes, grid or random; by default cmaes, or grid for
    one number.
    `trials` counts all candidates, including the target alone and the recipe as it is.

    `out` gets `trials.jsonl` (each trial with its numbers, metrics, interval and seconds), `best.yaml`, the checkpoint
    `best` and `result.json`, which is returned. After a kill, and with more `trials`, the same call resumes: the log is
    replayed, and the same seed proposes the same candidates.

    The winner is the best of many trials on the same questions, so its score there is optimistic; with
    `report_questions` it and the target are scored once on those, which must share no question with the others.

    Raises `RecipeError`, `DataError` (questions that overlap), `OutputExistsError` and what `merge` raises.
    """
    parsed = as_recipe(recipe)
    metric = dict(metric or {"f1": 1.0})
    _check_metric(metric)
    development = read_questions(Path(questions))
    others = read_questions(Path(report_questions)) if report_questions is not None else []
    check_disjoint(development, others)
    space = space_of(parsed, vary or {WEIGHTS: (0.0, 1.5)}, per_layer)
    by = by or ("cmaes" if len(space.dimensions) > 1 else "grid")
    if by not in ALGORITHMS:
        raise RecipeError(f"by is {by!r}{did_you_mean(by, ALGORITHMS)}")
    if trials < 3:
        raise RecipeError(
            f"trials is {trials}, expected 3 or more: the target alone, the recipe as it is, and a candidate"
        )
    plan = plan_merge(parsed)
    settings: dict[str, Any] = {
        **{
            "recipe": plan.settings,
            "inputs": dict(plan.inputs),
            "questions": _questions_digest(development),
            "metric": metric,
        },
        **{"vary": [[d.name, d.low, d.high] for d in space.dimensions], "by": by, "seed": seed},
        **{"max_new_tokens": max_new_tokens, "batch_size": batch_size},
        **({"trials": trials} if by == "grid" else {}),  # they decide how fine the grid is
    }
    points = ALGORITHMS[by](space.start, seed, trials - 1 - space.has_target_alone)
    first = next(points)  # an algorithm that cannot run fails before anything is written
    score = scorer or _live(parsed, list(metric), max_new_tokens, batch_size, threads, Path(out))
    with open_log(Path(out), settings) as log:
        _run_trials(space, log, development, metric, by, points, first, trials, score, on_trial)
        return _finish(space, log, development, others, metric, score, Path(out), threads)


def _live(
    recipe: MergeRecipe, metrics: Sequence[str], max_new_tokens: int, batch_size: int, threads: int | None, work: Path
) -> Scorer:
    """Return the scorer that loads the model at its first call: a finished tuning run needs none.

    Its precision is kept in `work`: trials before and after a kill must use one arithmetic.
    """
    loaded: list[Scorer] = []

    def score(candidate: MergeRecipe, questions: Sequence[Question]) -> Mapping[str, Sequence[float]]:
        if not loaded:
            from skillgraft.models.precision import one_precision
            from skillgraft.tuning.live import LiveModel

            with one_precision(work):
                loaded.append(LiveModel(recipe.base, metrics, max_new_tokens, batch_size, threads).score)
        return loaded[0](candidate, questions)

    return score


def _check_metric(metric: Mapping[str, float]) -> None:
    for name, weight in metric.items():
        if name not in TUNING_METRICS:
            raise RecipeError(f"metric {name!r} is unknown{did_you_mean(name, TUNING_METRICS)}")
        if not math.isfinite(weight) or weight == 0:
            raise RecipeError(f"metric {name}: its weight is {weight!r}, expected a finite number other than 0")


def check_disjoint(questions: Sequence[Question], others: Sequence[Question]) -> None:
    """Raise `DataError` where a question, up to case and punctuation, is in both sets with an answer in common."""
    same = shared_questions(questions, others)
    if same:
        raise DataError(
            f"report questions: {len(same)} of {len(others)} are among the development questions too, such as "
            f"{same[0].question!r}; a score on the selection set is not a result: remove "
            "them from one of the two"
        )


def _questions_digest(questions: Sequence[Question]) -> str:
    return digest([[q.document, q.question, *q.answers] for q in questions])


def _run_trials(
    space: Space,
    log: Log,
    questions: Sequence[Question],
    metric: Mapping[str, float],
    by: str,
    points: Points,
    point: list[float],
    trials: int,
    score: Scorer,
    on_trial: Callable[[Trial], None],
) -> None:
    """Run the trials that the log does not hold yet; `point` is the first of `points`."""
    number = 0

    def run_trial(what: str, point: list[float] | None) -> float:
        nonlocal number
        if number < len(log.trials):
            logged = log.trials[number]
            if (logged.what, logged.point) != (what, point):
                raise CheckpointError(
                    f"trial {number} of the log was {logged.what} at {logged.point}, this run proposes {what} at "
                    f"{point}: the libraries' versions differ; resume with the old ones, or choose another directory"
                )
        else:
            log.add(_scored(number, what, point, space, questions, metric, score))
        finished = log.trials[number]
        number += 1
        on_trial(finished)
        return -math.inf if finished.score is None else finished.score

    if space.has_target_alone:
        run_trial("target alone", None)
    run_trial("recipe as it is", space.start)
    with contextlib.suppress(StopIteration):  # a grid ends, and CMA-ES where it has converged
        while number < trials:
            point = points.send(run_trial(by, point))


def _scored(
    number: int,
    what: str,
    point: list[float] | None,
    space: Space,
    questions: Sequence[Question],
    metric: Mapping[str, float],
    score: Scorer,
) -> Trial:
    began = time.monotonic()
    row = _row(score(space.recipe_at(point), questions), questions, metric)
    values = space.values(point) if point is not None else {}
    return Trial(number, what, point, values, len(questions), **row, seconds=time.monotonic() - began)


def _row(
    values: Mapping[str, Sequence[float]], questions: Sequence[Question], metric: Mapping[str, float]
) -> dict[str, Any]:
    """Return score and interval of the weighted metrics, and the mean of each; None for what is not finite."""
    each = _combined(values, metric)
    means = {name: sum(values[name]) / len(questions) for name in metric}
    metrics = {name: mean if math.isfinite(mean) else None for name, mean in means.items()}
    if not all(map(math.isfinite, each)):
        return {"score": None, "low": None, "high": None, "metrics": metrics}
    interval = bootstrap(each, [question.document for question in questions])
    return {"score": interval["mean"], "low": interval["low"], "high": interval["high"], "metrics": metrics}


def _combined(by_metric: Mapping[str, Sequence[float]], metric: Mapping[str, float]) -> list[float]:
    columns = [[weight * value for value in by_metric[name]] for name, weight in metric.items()]
    return [sum(values) for values in zip(*columns, strict=True)]


def _finish(
    space: Space,
    log: Log,
    questions: Sequence[Question],
    others: Sequence[Question],
    metric: Mapping[str, float],
    score: Scorer,
    out: Path,
    threads: int | None,
) -> dict[str, Any]:
    """Write the winner, score it on the report questions if that has not been done, and return the result."""
    scored = [trial for trial in log.trials if trial.score is not None]
    if not scored:
        raise RecipeError(
            f"none of {len(log.trials)} trials gave a finite score; {out} holds the metrics of each: try smaller "
            "weights, or another metric"
        )
    best = max(scored, key=lambda trial: (trial.score, -trial.trial))
    recipe = space.recipe_at(best.point)
    before = read_json_object(out / RESULT_FILE) if (out / RESULT_FILE).is_file() else {}
    same = before.get("winner", {}).get("trial") == best.trial
    if not same or not (out / CHECKPOINT).is_dir():
        (out / RESULT_FILE).unlink(missing_ok=True)
        shutil.rmtree(out / CHECKPOINT, ignore_errors=True)
        atomic_write_text(out / RECIPE_FILE, recipe_yaml(recipe, out))
        merge(recipe, out / CHECKPOINT, threads=threads)
    result = {
        "metric": dict(metric),
        "questions": len(questions),
        "trials": len(log.trials),
        "winner": _public(best),
        "recipe_as_it_is": _public(next(trial for trial in log.trials if trial.what == "recipe as it is")),
        "target_alone": next((_public(trial) for trial in log.trials if trial.what == "target alone"), None),
        "note": f"the winner is the best of {len(log.trials)} trials on the same {len(questions)} questions: its score "
        "there is optimistic",
        "recipe": RECIPE_FILE,
        "checkpoint": CHECKPOINT,
        "report": None,
    }
    if others:
        report = before.get("report") if same else None
        digest_of_others = _questions_digest(others)
        if report is None or report["digest"] != digest_of_others:
            report = {"digest": digest_of_others, **_report(space, recipe, others, metric, score)}
        result["report"] = report
    atomic_write_json(out / RESULT_FILE, result)
    return result


def _report(
    space: Space, winner: MergeRecipe, questions: Sequence[Question], metric: Mapping[str, float], score: Scorer
) -> dict[str, Any]:
    """Return the winner's score on questions that nothing was chosen on, the target's, and their paired difference."""
    documents = [question.document for question in questions]
    values = score(winner, questions)
    report: dict[str, Any] = {"questions": len(questions), "winner": _row(values, questions, metric)}
    if space.has_target_alone:
        target = score(space.recipe_at(None), questions)
        report["target_alone"] = _row(target, questions, metric)
        pairs = zip(_combined(values, metric), _combined(target, metric), strict=True)
        differences = [a - b for a, b in pairs]
        if all(map(math.isfinite, differences)):
            interval = bootstrap(differences, documents)
            report["difference"] = {"mean": interval["mean"], "low": interval["low"], "high": interval["high"]}
    return report


def _public(trial: Trial) -> dict[str, Any]:
    return {key: getattr(trial, key) for key in ("trial", "what", "values", "score", "low", "high", "metrics")}


def recipe_yaml(recipe: MergeRecipe, folder: Path) -> str:
    """Return a merge recipe as YAML for a file in `folder`: paths relative to it, nothing that is a default."""

    def relative(path: Path) -> str:
        return os.path.relpath(path.resolve(), folder.resolve())

    operands = []
    for operand in recipe.operands:
        named = {key: getattr(operand, key) for key in ("model", "adapter", "minus")}
        named["skill"] = resolve_skill(operand.skill).path if operand.skill is not None else None
        weight = {"weight": operand.weight} if operand.weights is None else {"weights": operand.weights}
        operands.append({**{key: relative(path) for key, path in named.items() if path is not None}, **weight})
    data: dict[str, Any] = {"method": recipe.method, "base": relative(recipe.base), "operands": operands}
    data["parameters"] = recipe.parameters.model_dump()
    data |= {key: value for key, value in (("dtype", recipe.dtype), ("allow", list(recipe.allow))) if value}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
