import numpy as np
import pytest

from skillgraft.arithmetic.statistics.thresholds import MagnitudeSearch, narrow_by_sample

KINDS = {
    "continuous": lambda rng, x: x,
    "on a grid": lambda rng, x: np.round(x * 40),
    "on a coarse grid": lambda rng, x: np.round(x * 2),
    "mostly zero": lambda rng, x: np.round(x * 5) * (rng.random(len(x)) < 0.3),
}


@pytest.mark.parametrize("misleading", [False, True])
@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_threshold_is_the_order_statistic(kind, density, misleading):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        values = KINDS[kind](rng, rng.standard_normal(int(rng.integers(300, 60_000))))
        keys = np.abs(values).astype(np.float32).view(np.int32)
        search = MagnitudeSearch(max(1, int(density * len(values))))
        sample = np.sort(keys)[: max(256, len(keys) // 3)] if misleading else keys[rng.integers(0, len(keys), 2000)]
        narrow_by_sample(search, sample, len(values))
        for _ in range(200):
            for part in np.array_split(values, 3):
                search.add(part, np.empty(len(part), dtype=np.int32))
            search.close_round()
            if search.key is not None:
                break
        assert search.key == np.sort(keys)[::-1][search.wanted - 1]


def test_equal_values_are_settled_in_one_round():
    rng = np.random.default_rng(0)
    values = np.round(rng.standard_normal(50_000) * 2)
    keys = np.abs(values).astype(np.float32).view(np.int32)
    search = MagnitudeSearch(10_000)
    narrow_by_sample(search, keys[rng.integers(0, len(keys), 2000)], len(keys))
    search.add(values, np.empty(len(values), dtype=np.int32))
    assert not search.pending, "values that repeat are counted, not held"
    search.close_round()
    assert search.key == np.sort(keys)[::-1][9_999]
