"""The sparse form: lossless, in either coding, by blocks; an index that contradicts itself is refused."""

import numpy as np
import pytest

from skillgraft.skills.forms import sparse
from skillgraft.skills.forms.sparse import BLOCK, Encoded, check_offsets, decode_sparse, encode_sparse, positions_of


def random_bits(elements, density, seed=0):
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 1 << 32, size=elements, dtype=np.uint32)  # any bits: NaN patterns and -0 too
    values[rng.random(elements) >= density] = 0
    return values


@pytest.mark.parametrize("elements", [0, 1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("density", [0.0, 0.0005, 0.05, 0.08, 1.0])
def test_every_bit_comes_back(elements, density):
    values = random_bits(elements, density)
    encoded = encode_sparse(values, values != 0)
    assert np.array_equal(decode_sparse(encoded, elements), values)
    assert len(encoded.values) == np.count_nonzero(values)
    assert len(encoded.offsets) == sparse.blocks(elements) + 1
    assert len(encoded.index) == sparse.index_length(encoded.coding, elements, len(encoded.values))


def test_by_hand():
    values = np.zeros(BLOCK + 4, dtype=np.float32)
    values[[2, BLOCK + 1, BLOCK + 3]] = [1.5, -2.0, 4.0]
    places = encode_sparse(values, values != 0)
    assert places.coding == "places"
    assert (places.offsets.tolist(), places.index.tolist()) == ([0, 1, 3], [2, 1, 3])
    assert places.values.tolist() == [1.5, -2.0, 4.0]
    bitmap = encode_sparse(values[BLOCK:], values[BLOCK:] != 0)
    assert bitmap.coding == "bitmap"
    assert (bitmap.offsets.tolist(), bitmap.index.tolist()) == ([0, 2], [0b1010])


def test_the_smaller_index_is_taken():
    for count in (1000, 65536 // 16, 65536 // 16 + 1, 30000):
        kept = np.arange(BLOCK) < count
        encoded = encode_sparse(np.ones(BLOCK, dtype=np.float32), kept)
        assert encoded.index.nbytes == min(2 * count, BLOCK // 8)


def test_places_that_cannot_be():
    offsets = np.array([0, 2, 3])
    good = np.array([0, 5, 1], dtype=np.uint16)
    assert positions_of("places", good, offsets, BLOCK + 2).tolist() == [0, 5, BLOCK + 1]
    for index in ([5, 5, 1], [5, 0, 1], [0, 5, 2], [0, 5, 65535]):
        with pytest.raises(ValueError, match="do not ascend or lie beyond the tensor"):
            positions_of("places", np.array(index, dtype=np.uint16), offsets, BLOCK + 2)


def test_a_bitmap_that_cannot_be():
    for ones in (0b0001, 0b0111, 0b1000_0001):  # too few, too many, one in the padding
        with pytest.raises(ValueError, match="bitmap does not mark as many"):
            positions_of("bitmap", np.array([ones], dtype=np.uint8), np.array([0, 2]), 4)
    two_blocks = np.zeros(BLOCK // 4, dtype=np.uint8)
    two_blocks[0] = 3
    with pytest.raises(ValueError, match="bitmap does not mark as many"):
        positions_of("bitmap", two_blocks, np.array([0, 1, 2]), 2 * BLOCK)


@pytest.mark.parametrize(
    "offsets", [[1, 2, 3], [0, 2, 4], [0, 2, 2], [0, -1, 3], [0, 4, 3], [0, 0, 3], [0, 1 << 62, 3], [0, -(1 << 63), 3]]
)
def test_offsets_that_cannot_be(offsets):
    check_offsets(np.array([0, 2, 3]), BLOCK + 2, 3)
    with pytest.raises(ValueError, match="offsets do not ascend from 0 to 3"):
        check_offsets(np.array(offsets), BLOCK + 2, 3)
    encoded = Encoded("places", np.array(offsets), np.array([0, 1, 0], dtype=np.uint16), np.ones(3))
    with pytest.raises(ValueError, match="offsets"):
        decode_sparse(encoded, BLOCK + 2)
