import numpy as np
import pytest

from skillgraft.evals.intervals import bootstrap, bootstrap_of_strata


def test_mean_and_n():
    found = bootstrap([1.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"])
    assert found["mean"] == 0.75
    assert found["n"] == 4


def test_one_cluster_has_no_width():
    found = bootstrap([1.0, 0.0, 0.0], ["a", "a", "a"])
    assert found["low"] == found["high"] == pytest.approx(1 / 3)


def test_two_clusters_have_three_possible_means():
    # a = (1, 1), b = (0): drawing aa gives 1, ab 2/3, bb 0; each end has probability 1/4, so the ends are 0 and 1
    found = bootstrap([1.0, 1.0, 0.0], ["a", "a", "b"])
    assert (found["low"], found["high"]) == (0.0, 1.0)


def test_width_agrees_with_the_normal_interval_for_many_single_clusters():
    values = np.random.default_rng(1).normal(size=400)
    found = bootstrap(list(values), [str(i) for i in range(400)])
    half = 1.96 * values.std() / 20
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.02)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.02)


def test_clusters_widen_the_interval():
    values = [1.0] * 40 + [0.0] * 40
    alone = bootstrap(values, [str(i) for i in range(80)])
    grouped = bootstrap(values, [str(i // 10) for i in range(80)])
    assert grouped["high"] - grouped["low"] > 2 * (alone["high"] - alone["low"])


def test_same_seed_same_interval():
    values, clusters = [0.0, 1.0, 0.5, 0.25], list("abcd")
    assert bootstrap(values, clusters) == bootstrap(values, clusters)


def test_refuses_nothing():
    with pytest.raises(ValueError, match="0 values"):
        bootstrap([], [])


def test_weights_make_a_ratio_of_sums():
    # bits and bytes of three texts in two documents: (2 + 4 + 9) / (4 + 4 + 2), each document alone 6/8 and 9/2
    found = bootstrap([2.0, 4.0, 9.0], ["a", "a", "b"], weights=[4, 4, 2])
    assert found["mean"] == pytest.approx(1.5)
    assert (found["low"], found["high"]) == pytest.approx((6 / 8, 9 / 2))
    values = list(np.random.default_rng(2).normal(size=50))
    clusters = [str(i // 3) for i in range(50)]
    assert bootstrap(values, clusters, weights=[1] * 50) == bootstrap(values, clusters)


def test_strata_count_alike_and_are_redrawn_apart():
    found = bootstrap_of_strata([[1.0, 0.0], [1.0] * 98])
    assert found["mean"] == pytest.approx(0.75)
    assert (found["low"], found["high"]) == pytest.approx((0.5, 1.0))  # the second stratum is 1 in every draw
    assert found["n"] == 100
    values = list(np.random.default_rng(3).normal(size=60))
    alone, plain = bootstrap_of_strata([values]), bootstrap(values, [str(i) for i in range(60)])
    assert [alone[end] for end in ("mean", "low", "high")] == pytest.approx([plain[e] for e in ("mean", "low", "high")])
