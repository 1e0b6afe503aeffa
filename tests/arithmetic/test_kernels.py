"""The kernel's short ways for bf16 against fp64 arithmetic rounded once, on all kinds of finite numbers."""

import numpy as np
import pytest
import torch

from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.kernels.codes import BF16, WEIGHTED_SUM
from skillgraft.arithmetic.rounding import round_once

LARGE = 3 * native.BLOCK + 11


def bits(seed, plain):
    """Return finite bf16 numbers: all normal ones near 0.02 if `plain`, else of every exponent, zeros between."""
    generator = np.random.default_rng(seed)
    if plain:
        return (generator.normal(0.02, 0.002, LARGE).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    found = generator.integers(0, 1 << 16, LARGE).astype(np.uint16)
    found[(found & 0x7F80) >= 0x7E00] &= 0x9FFF  # sums stay finite in bf16
    found[generator.random(LARGE) < 0.1] = 0
    return found


def merged(shorts, firsts, terms, signs, weights, target, scales):
    raws = np.stack([short.view(np.uint8) for short in shorts])
    outs, sums = np.empty((len(scales), 2 * LARGE), dtype=np.uint8), np.empty(len(scales) + 2)
    finite = native.merge_tile(
        raws, np.full(len(shorts), BF16), LARGE, np.array(firsts), np.array(terms), np.array(signs, float),
        np.array(weights, float), np.empty((0, 0), dtype=np.bool_), 1.0, WEIGHTED_SUM, np.empty(0), False, 1.0,
        1.0, target, np.array(scales, float), native.HALF_VALUES, outs, BF16, sums,
    )  # fmt: skip
    return finite, outs.view(np.uint16), sums


def wide(short):
    return (short.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


WAYS = {
    "two from the target": ([0, 2, 4], [1, 0, 2, 0], [1, -1, 1, -1], [0.7, -0.3], 0),
    "one from the target": ([0, 2], [1, 0], [1, -1], [0.6], 0),
    "a difference of others": ([0, 2], [1, 2], [1, -1], [1.0], 0),
    "a sum of models": ([0, 1, 2, 3], [0, 1, 2], [1, 1, 1], [0.5, 0.3, 0.2], -1),
    "a negative source": ([0, 1, 2], [1, 2], [-1, 1], [0.5, 0.25], 0),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plain", [True, False])
def test_every_way_rounds_once(way, plain):
    firsts, terms, signs, weights, target = WAYS[way]
    shorts = [bits(seed, plain) for seed in range(3)]
    scales = [1.0, 0.5, -0.25] if target >= 0 else [1.0]
    finite, outs, sums = merged(shorts, firsts, terms, signs, weights, target, scales)
    assert finite
    sources = list(map(wide, shorts))
    made = 0.0
    for j, weight in enumerate(weights):
        value = 0.0
        for place in range(firsts[j], firsts[j + 1]):
            value = value + signs[place] * sources[terms[place]]
        made = value * weight if j == 0 else made + value * weight
    for number, scale in enumerate(scales):
        exact = made * scale + sources[target] if target >= 0 else made
        stored = round_once(torch.from_numpy(exact), torch.bfloat16)
        assert np.array_equal(stored.view(torch.int16).numpy().view(np.uint16), outs[number])
        lost = float(np.sum((stored.double().numpy() - exact) ** 2))
        assert sums[1 + number] == pytest.approx(lost, rel=1e-9)
    assert sums[0] == pytest.approx(float(np.sum(made**2)), rel=1e-12)
    assert sums[-1] == pytest.approx(float(stored.double().square().sum()), rel=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrong", [0x7F80, 0xFF80, 0x7FC0])
def test_what_is_not_finite_is_found_and_the_rest_is_still_made(way, wrong):
    firsts, terms, signs, weights, target = WAYS[way]
    shorts = [bits(seed, True) for seed in range(3)]
    clean = merged(shorts, firsts, terms, signs, weights, target, [1.0])[1].copy()
    shorts[terms[0]][5] = wrong
    finite, outs, _ = merged(shorts, firsts, terms, signs, weights, target, [1.0])
    assert not finite
    assert np.array_equal(np.delete(outs, 5), np.delete(clean, 5))
