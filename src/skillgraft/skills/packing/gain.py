"""What a packed skill keeps of its original's gain on questions, with a paired interval."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skillgraft.arithmetic.injection import inject
from skillgraft.checkpoint.default_model import resolve_base
from skillgraft.checkpoint.layout import read_layout
from skillgraft.domains.knowledge import read_questions
from skillgraft.evals.intervals import RESAMPLES, bootstrap
from skillgraft.evals.metrics import METRICS
from skillgraft.skills.compatibility import check_compatibility
from skillgraft.skills.skill import Skill


def check_gain_inputs(skill: Skill, target: str, questions: Path) -> Path:
    """Return the target's directory; raise before any packing for a target or questions that don't fit."""
    read_questions(questions)
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
    interval of the gain includes 0 the share means nothing, and `kept` says so by None.
    """
    from skillgraft.evals.answers import evaluate_checkpoint

    questions = read_questions(questions_file)
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
    kept = gains > 0
    low, high = np.percentile(lefts[kept] / gains[kept], [2.5, 97.5])
    return {"share": float(left.sum() / gain.sum()), "low": float(low), "high": float(high)}


def _minus(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]
