"""Tuning algorithms: CMA-ES, and a grid and random points to compare it with.

An algorithm is a generator: it yields points of the unit cube and is sent each one's score (higher is better, -inf
where there was none). The same arguments and scores give the same points, so that a log can be replayed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Sequence

import numpy as np

from skillgraft.errors import RecipeError

Points = Generator[list[float], float, None]

STEP = 0.25
"""The first standard deviation of CMA-ES, as a share of each range."""

_WORST = 1e30
"""The loss of a trial without a score: CMA-ES ranks, so any number above all others will do."""


def cmaes(start: Sequence[float], seed: int, trials: int) -> Points:
    """Yield the samples of CMA-ES (Hansen & Ostermeier 2001; arXiv 1604.00772) from the package `cma`, around `start`.

    Stops earlier than `trials` where it has converged. Raises `RecipeError` for a single dimension or without `cma`.
    """
    if len(start) < 2:
        raise RecipeError("cmaes needs two numbers to vary at least, got 1; take --by grid")
    try:
        import cma
    except ImportError as error:
        raise RecipeError("cmaes needs the package cma: pip install 'skillgraft[tune]'; or take --by random") from error
    generator = np.random.default_rng(seed)
    options = {
        "bounds": [0, 1],
        "randn": lambda *size: generator.standard_normal(size),  # not NumPy's global state
        "seed": math.nan,  # which cma would set to this otherwise
        "tolflatfitness": 10,  # a metric of few questions has plateaus
        "verbose": -9,
        "verb_log": 0,
    }
    inside = [min(max(place, 0.02), 0.98) for place in start]  # a mean on the edge samples half of its points there
    strategy = cma.CMAEvolutionStrategy(inside, STEP, options)
    while not strategy.stop():
        points = strategy.ask()
        losses = []
        for point in points:
            score = yield [float(place) for place in point]
            losses.append(-score if math.isfinite(score) else _WORST)
        strategy.tell(points, losses)


def grid(start: Sequence[float], seed: int, trials: int) -> Points:
    """Yield the finest regular grid of at most `trials` points, ends included; the last dimension moves first."""
    levels = max(k for k in range(1, trials + 2) if k ** len(start) <= max(trials, 1))
    if levels < 2:
        raise RecipeError(
            f"grid: {trials} trials are left for {len(start)} numbers, expected {2 ** len(start)} or more; give more "
            "--trials, vary less, or take --by cmaes or random"
        )
    for point in itertools.product(np.linspace(0, 1, levels).tolist(), repeat=len(start)):
        yield list(point)


def random(start: Sequence[float], seed: int, trials: int) -> Points:
    """Yield independent uniform points for ever."""
    generator = np.random.default_rng(seed)
    while True:
        yield generator.random(len(start)).tolist()


ALGORITHMS: dict[str, Callable[[Sequence[float], int, int], Points]] = {"cmaes": cmaes, "grid": grid, "random": random}
