"""The compiled sums against fp64 arithmetic on all kinds of bf16 numbers, subnormal ones and powers of two included."""

import numpy as np
import pytest

from skillgraft.arithmetic.kernels.codes import BF16
from skillgraft.arithmetic.kernels.native import HALF_VALUES
from skillgraft.geometry import native


def bits(seed, count):
    """Return finite bf16 numbers: half of any exponent, half near 0.02 as weights are, with zeros between."""
    generator = np.random.default_rng(seed)
    found = generator.integers(0, 1 << 16, count).astype(np.uint16)
    found[(found & 0x7F80) >= 0x6000] &= 0x9FFF  # squares of squares stay finite
    near = (generator.normal(0.02, 0.0004, count).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    found[::2] = near[::2]
    found[generator.random(count) < 0.05] = 0
    return found


def wide(short):
    return (short.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("vectors", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 37, native.BLOCK, 3 * native.BLOCK + 5])
def test_differences_of_bf16(vectors, count):
    shorts = [bits(seed, count) for seed in range(vectors + 1)]
    shorts[1][::7] = shorts[0][::7]
    raws = np.stack([short.view(np.uint8) for short in shorts])
    terms = np.array([place for j in range(vectors) for place in (j + 1, 0)])
    pairs, below = np.empty((vectors * (vectors + 1) // 2, 4)), np.empty(vectors)
    base = native.compare_tile(
        raws,
        np.full(vectors + 1, BF16),
        count,
        np.arange(0, 2 * vectors + 1, 2),
        terms,
        np.tile([1.0, -1.0], vectors),
        0,
        HALF_VALUES,
        pairs,
        below,
    )
    origin, *sources = map(wide, shorts)
    deltas = [source - origin for source in sources]
    assert base == pytest.approx(np.sum(origin**2), rel=1e-12)
    rows = iter(pairs)
    for i, one in enumerate(deltas):
        for j in range(i, vectors):
            product, row = one * deltas[j], next(rows)
            assert row[native.DOT] == pytest.approx(product.sum(), rel=1e-12, abs=1e-14 * np.abs(product).sum())
            assert row[native.FOURTH] == pytest.approx(np.sum(product**2), rel=1e-12)
            sign = np.sign(one) * np.sign(deltas[j])
            assert row[native.SAME] == np.count_nonzero(sign > 0)
            assert row[native.OPPOSITE] == np.count_nonzero(sign < 0)
    spacing = np.maximum(2.0 ** (np.floor(np.log2(np.maximum(np.abs(origin), 2.0**-126))) - 8), 2.0**-134)
    assert below.tolist() == [np.count_nonzero((delta != 0) & (np.abs(delta) < spacing)) for delta in deltas]
