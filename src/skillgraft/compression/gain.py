"""Gain kept by a packed skill on questions, relative to its original, with a paired interval."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skillgraft.arithmetic.injection.inject import inject
from skillgraft.checkpoint.default_model import resolve_base
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint, fingerprint_file
from skillgraft.checkpoint.layout import read_layout
from skillgraft.data.metrics import METRICS
from skillgraft.data.tasks import questions_path, read_questions
from skillgraft.errors import DataError
from skillgraft.evals.intervals import RESAMPLES, bootstrap
from skillgraft.evals.overlap import shared_questions
from skillgraft.skills.compatibility import check_compatibility
from skillgraft.skills.skill import Skill

_COLUMNS = {"f1": "token F1", "containment": "containment", "exact_match": "exact match"}
_SHORT = 19


def check_gain_inputs(skill: Skill, target: str, questions: Path, chosen_on: Path | None = None) -> Path:
    """Return the target's directory; raise before any packing for a target or questions that don't fit.

    Raises `DataError` if some of the questions are among those that a mask is chosen on.
    """
    tasks = read_questions(questions)
    same = shared_questions(read_questions(chosen_on), tasks) if chosen_on is not None else []
    if same:
        raise DataError(
            f"{questions}: {len(same)} of {len(tasks)} questions are in {chosen_on} too, such as "
            f"{same[0].question!r}; expected other questions to measure on than those that the mask was chosen on"
        )
    directory = resolve_base(target, lambda message: None)
    check_compatibility(read_layout(directory), skill)
    return directory


def kept_gain(
    original: Skill,
    packed: Skill,
    target: Path,
    questions_file: Path,
    *,
    scale: float = 1.0,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Return the scores of target, target + original and target + packed, and the share of the gain that is kept.

    By metric: `scores` with intervals over documents; `gain` = original − target; `kept` = (packed − target) /
    (original − target) with a paired percentile interval. Both are computed on the same redrawn documents; where the
    interval of the gain includes 0 the share is meaningless, and `kept` is None. Raises `DataError` for the questions
    that the mask was chosen on.
    """
    from skillgraft.evals.answers import evaluate_checkpoint

    questions = read_questions(questions_file)
    data = fingerprint_file(questions_path(questions_file))
    if packed.manifest.packing is not None and packed.manifest.packing.settings.get("questions") == data:
        raise DataError(f"{questions_file}: the mask of {packed.path} was chosen on these; expected other questions")
    clusters = [question.document for question in questions]
    raws = {}
    with tempfile.TemporaryDirectory(prefix="skillgraft-gain-") as scratch:
        for label, skill in (("target", None), ("original", original), ("packed", packed)):
            say(f"{label} …")
            model = target
            if skill is not None:
                model = Path(scratch) / label
                inject(target, skill, model, scale=scale)
            raws[label] = evaluate_checkpoint(model, questions, retention=False)["scores"]
    return {
        "questions": len(questions),
        "scale": scale,
        "data": data,
        "target": fingerprint_checkpoint(target),
        "scores": {
            label: {metric: bootstrap(raw[metric], clusters) for metric in METRICS} for label, raw in raws.items()
        },
        "gain": {
            metric: bootstrap(_minus(raws["original"][metric], raws["target"][metric]), clusters) for metric in METRICS
        },
        "kept": {
            metric: kept_share(raws["target"][metric], raws["original"][metric], raws["packed"][metric], clusters)
            for metric in METRICS
        },
    }


def score_rows(gain: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the result of `kept_gain` as rows for a manifest: three models, and the share of the gain that is kept."""
    facts = {"questions": gain["questions"], "data": gain["data"][:_SHORT], "target": gain["target"][:_SHORT]}
    names = {"target": "target", "original": "target + original", "packed": "target + this skill"}
    rows = [
        {"model": name, "λ": "–" if label == "target" else gain["scale"]}
        | {_COLUMNS[metric]: _interval(measured) for metric, measured in gain["scores"][label].items()}
        | facts
        for label, name in names.items()
    ]
    shares = {_COLUMNS[metric]: share_text(measured) for metric, measured in gain["kept"].items()}
    return [*rows, {"model": "gain kept", "λ": gain["scale"]} | shares | facts]


def share_text(share: Mapping[str, float] | None) -> str:
    """Return a share with its interval, as percentages."""
    return f"{share['share']:.0%} ({share['low']:.0%} to {share['high']:.0%})" if share else "no gain shown"


def _interval(interval: Mapping[str, Any]) -> str:
    return f"{interval['mean']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"


def kept_share(
    target: Sequence[float], original: Sequence[float], packed: Sequence[float], clusters: Sequence[str], seed: int = 0
) -> dict[str, float] | None:
    """Return Σ(packed − target) / Σ(original − target) with its 95% interval, None where no gain is shown.

    Whole clusters are redrawn, the same ones for both sums (Efron & Tibshirani 1993, ch. 13); no gain is shown where
    the redrawn Σ(original − target) is 0 or less in over 2.5% of the draws.
    """
    index = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    member = np.array([index[name] for name in clusters])
    gain = np.bincount(member, weights=_minus(original, target))
    left = np.bincount(member, weights=_minus(packed, target))
    drawn = np.random.default_rng(seed).integers(len(index), size=(RESAMPLES, len(index)))
    gains, lefts = gain[drawn].sum(axis=1), left[drawn].sum(axis=1)
    if gain.sum() <= 0 or (gains <= 0).mean() > 0.025:
        return None
    positive = gains > 0
    low, high = np.percentile(lefts[positive] / gains[positive], [2.5, 97.5])
    return {"share": float(left.sum() / gain.sum()), "low": float(low), "high": float(high)}


def _minus(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]
