"""Quantised factors: by hand, bit for bit through the packing, and with the loss that allocation counts on."""

import numpy as np
import pytest

from skillgraft.skills.forms import packed
from skillgraft.skills.forms.packed import LOSS, WIDTHS, decode_packed, encode_packed, row_bytes


def test_two_bits_by_hand():
    """Codes 0 to 3 stand for -1.5, -0.5, 0.5 and 1.5 times the scale; 2 is exact in bf16."""
    a = np.array([[-3.0, -1.0, 1.0, 3.0, 3.0]])
    encoded = encode_packed(a, np.array([[3.0]]), {2: 1})
    assert encoded.a.tolist() == [0b11_10_01_00, 0b11]
    assert encoded.a_scales.tolist() == [[0x4000]]
    decoded, b = decode_packed(encoded, (1, 5), {2: 1})
    assert decoded.tolist() == a.tolist()
    assert b.tolist() == [[3.0]]


def test_three_bits_cross_bytes():
    a = np.arange(8.0)[None] * 2 - 7  # codes 0 to 7 at scale 2
    encoded = encode_packed(a, np.ones((1, 1)), {3: 1})
    number = sum(code << (3 * place) for place, code in enumerate(range(8)))
    assert encoded.a.tolist() == list(number.to_bytes(3, "little"))
    assert decode_packed(encoded, (1, 8), {3: 1})[0].tolist() == a.tolist()


@pytest.mark.parametrize("width", WIDTHS)
def test_what_is_decoded_is_a_code_times_its_scale(width):
    """The same by a plain loop over elements, from the stored bytes alone."""
    rng = np.random.default_rng(width)
    a, b = rng.standard_normal((3, 100)), rng.standard_normal((70, 3))
    encoded = encode_packed(a, b, {width: 3})
    decoded = decode_packed(encoded, (70, 100), {width: 3})[0]
    rows = encoded.a.reshape(3, row_bytes(100, width))
    for row in range(3):
        whole = int.from_bytes(rows[row].tobytes(), "little")
        for column in range(100):
            code = (whole >> (column * width)) & ((1 << width) - 1)
            bits = int(encoded.a_scales[row, column // 64]) << 16
            scale = np.array([bits], dtype=np.uint32).view(np.float32)[0]
            assert decoded[row, column] == float(scale) * (code - ((1 << width) - 1) / 2)


def test_the_first_directions_get_the_most_bits():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((34, 640)), rng.standard_normal((320, 34))
    bits = {8: 4, 4: 8, 3: 10, 2: 12}
    got = decode_packed(encode_packed(a, b, bits), (320, 640), bits)
    begin = 0
    for width, count in bits.items():
        part = slice(begin, begin + count)
        for one, other in ((a[part], got[0][part]), (b[:, part], got[1][:, part])):
            loss = np.square(one - other).sum() / np.square(one).sum()
            assert loss == pytest.approx(LOSS[width], rel=0.3)
        begin += count


def test_small_and_zero_rows():
    a = np.zeros((2, 65))
    a[1] = 1e-30
    encoded = encode_packed(a, np.ones((1, 2)), {4: 2})
    decoded = decode_packed(encoded, (1, 65), {4: 2})[0]
    assert (decoded[0] == 0).all()
    assert decoded[1] == pytest.approx(1e-30, rel=0.1)


@pytest.mark.parametrize("scale", [0x7F80, 0x7FC0, 0x8000, 0xBF80])
def test_a_scale_that_is_no_size(scale):
    encoded = encode_packed(np.ones((1, 4)), np.ones((1, 1)), {4: 1})
    encoded.b_scales[0, 0] = scale
    with pytest.raises(ValueError, match="a scale is NaN, infinite or negative"):
        decode_packed(encoded, (1, 4), {4: 1})


@pytest.mark.parametrize(("width", "largest"), [(8, 2.66e36), (2, 2.2e38)])
def test_a_scale_whose_codes_overflow(width, largest):
    """The largest code stands for (2^b − 1)/2 scales, and float32 ends at 3.4e38."""
    encoded = encode_packed(np.ones((1, 4)), np.ones((1, 1)), {width: 1})
    encoded.a_scales[0, 0] = np.float32(largest).view(np.uint32) >> 16
    assert np.isfinite(decode_packed(encoded, (1, 4), {width: 1})[0]).all()
    encoded.a_scales[0, 0] = np.float32(largest * 1.1).view(np.uint32) >> 16
    with pytest.raises(ValueError, match=f"so large that its codes of {width} bits overflow float32"):
        decode_packed(encoded, (1, 4), {width: 1})


def test_bytes_are_as_stated():
    bits = {8: 2, 3: 1}
    encoded = encode_packed(np.ones((3, 100)), np.ones((70, 3)), bits)
    assert packed.factor_bytes(100, bits) == encoded.a.nbytes == 2 * 100 + 38
    total = sum(array.nbytes for array in encoded)
    assert total == 2 * packed.direction_bytes(70, 100, 8) + packed.direction_bytes(70, 100, 3)
