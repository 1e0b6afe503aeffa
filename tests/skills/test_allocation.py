"""The budget against a search over everything, and its bounds."""

import itertools

import numpy as np
import pytest

from skillgraft.compression.allocation import Directions, Either, Elements, Option, magnitudes, price_for

TWO = [Option(8, 10.0, 0.0), Option(2, 3.0, 0.1)]


def kept(parts, price):
    """Return (bytes, energy lost) at a price."""
    lost = 0.0
    for part in parts.values():
        losses = {option.label: option.loss for option in part.options}
        counts = part.taken(price)
        labels = [label for label, count in counts.items() for _ in range(count)]
        lost += sum(energy * losses[label] for energy, label in zip(part.energies, labels, strict=False))
        lost += part.energies[len(labels) :].sum()
    return sum(part.cost(price) for part in parts.values()), lost


@pytest.mark.parametrize("budget", [10, 20, 30, 45, 60])
def test_nothing_cheaper_loses_less(budget):
    """On the bytes that it uses, no other choice of options leaves less energy unexplained."""
    energies = {"a": np.array([9.0, 4.0, 1.0]), "b": np.array([16.0, 0.5, 0.1])}
    parts = {name: Directions(values, TWO) for name, values in energies.items()}
    used, lost = kept(parts, price_for(parts, budget))
    assert used <= budget
    best = np.inf
    ways = [(0.0, 1.0), *((option.cost, option.loss) for option in TWO)]
    for chosen in itertools.product(ways, repeat=6):
        if sum(cost for cost, _ in chosen) <= used:
            every = np.concatenate(list(energies.values()))
            best = min(best, sum(energy * loss for energy, (_, loss) in zip(every, chosen, strict=True)))
    assert lost == pytest.approx(best)


def test_everything_and_nothing():
    parts = {"a": Directions(np.array([2.0, 1.0, 0.0]), [Option(0, 5.0, 0.0)])}
    assert price_for(parts, 10) == 0.0
    assert parts["a"].taken(0.0) == {0: 2}  # a direction without energy is never worth a byte
    assert parts["a"].taken(price_for(parts, 9)) == {0: 1}
    assert parts["a"].taken(price_for(parts, 4)) == {}


def test_another_way_to_store_a_matrix_bounds_its_cost():
    part = Directions(np.ones(10), [Option(0, 5.0, 0.0)], most=20.0)
    assert part.cost(0.0) == 20.0


def test_elements_by_magnitude():
    values = np.array([0.0, 1.0, -1.0, 2.0, 4.0], dtype=np.float32)
    counts, energies = magnitudes(values)
    assert (counts.sum(), energies.sum()) == (4, 1 + 1 + 4 + 16)
    part = Elements(counts, energies, cost_each=2.0, most_index=6.0)
    assert part.cost(0.0) == 8.0 + 6.0
    assert part.threshold(4.0) == 4.0
    assert part.cost(4.0) == 4.0
    assert part.cost(0.9) == 4 * 2 // 2 + 2 * 2
    assert (part.lost(0.0), part.lost(4.0)) == (0.0, 1 + 1 + 4)
    assert price_for({"w": part}, 9) == pytest.approx(0.25, rel=0.02)  # 1 is worth 4 bytes up to there


def test_the_better_of_two_ways():
    """One element holds everything, or one direction does: each is kept in the way that is cheaper for it."""
    spike, flat = np.zeros(100, dtype=np.float32), np.full(100, 0.1, dtype=np.float32)
    spike[3] = 1.0
    for values, expected in ((spike, Elements), (flat, Directions)):
        elements = Elements(*magnitudes(values), cost_each=2.0, most_index=12.5)
        either = Either(elements, Directions(np.array([1.0, 0, 0]), [Option(0, 40.0, 0.0)]))
        assert isinstance(either.taken_at(0.01), expected)
        assert either.cost(0.01) == (4.0 if expected is Elements else 40.0)
