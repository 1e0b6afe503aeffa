"""The k-th largest of a stream: exact whatever is guessed, held or counted."""

import numpy as np
import pytest

from skillgraft.arithmetic.statistics import order_statistics
from skillgraft.arithmetic.statistics.order_statistics import LARGEST_KEY, ScoreSearch


def find(parts, wanted, low=0, high=LARGEST_KEY):
    search = ScoreSearch(wanted, low, high)
    rounds = 0
    while search.key is None:
        for part in parts:
            search.add(part.view(np.int64))
        search.close_round()
        rounds += 1
    return float(np.array(search.key).view(np.float64)), rounds


@pytest.mark.parametrize("held", [10, 1 << 21])
@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).random(5000),
        np.abs(np.random.default_rng(1).standard_cauchy(5000)) * 1e-200,
        np.random.default_rng(2).integers(0, 7, 5000) / 3,
        np.zeros(300),
        np.array([0.0, np.inf, 5e-324, 1.0]),
    ],
)
def test_every_rank(monkeypatch, values, held):
    monkeypatch.setattr(order_statistics.ScoreSearch, "HELD", held)
    order = np.sort(values)[::-1]
    parts = np.array_split(values, 7)
    for wanted in {1, 2, len(values) // 3 + 1, len(values) - 1, len(values)}:
        assert find(parts, wanted)[0] == order[wanted - 1]


def test_guesses_cost_rounds_and_nothing_else():
    values = np.random.default_rng(3).random(4000)
    order = np.sort(values)[::-1]
    keys = order.view(np.int64)
    assert find([values], 100, int(keys[120]), int(keys[80])) == (order[99], 1)
    for low, high in ((keys[50], keys[20]), (keys[3000], keys[200])):  # too high, too low
        assert find([values], 100, int(low), int(high)) == (order[99], 2)
    search = ScoreSearch(100)
    search.guess(values[::4].view(np.int64), len(values))
    assert keys[400] < search.low <= keys[99] <= search.high
    ScoreSearch(3).guess(values[:10].view(np.int64), 10)  # too few to guess from
