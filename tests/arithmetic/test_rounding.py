from fractions import Fraction

import numpy as np
import pytest
import torch

from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.kernels.codes import CODES, F64, WEIGHTED_SUM
from skillgraft.arithmetic.rounding import is_finite, round_once
from skillgraft.checkpoint.tensor_io import dtype_code, tensor_bytes

BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}
SMALLEST = {torch.bfloat16: -133, torch.float16: -24, torch.float32: -149}  # exponent of the least subnormal


def exactly(value, dtype):
    """The nearest number of the dtype to `value`, ties to even, by rational arithmetic."""
    if value == 0:
        return value
    exponent = int(np.floor(np.log2(abs(value))))
    if Fraction(abs(value)) < Fraction(2) ** exponent:
        exponent -= 1
    step = Fraction(2) ** max(exponent - BITS[dtype] + 1, SMALLEST[dtype])
    quotient = Fraction(value) / step
    return float(round(quotient) * step)  # Fraction rounds ties to even


def hard_cases(dtype):
    """Values at, just above and just below the ties of `dtype`, normal and subnormal, and random ones."""
    rng = np.random.default_rng(0)
    bits, smallest = BITS[dtype], SMALLEST[dtype]
    values = list(rng.standard_normal(200))
    for exponent in (0, 3, -5, -13, smallest + 2, smallest + bits, smallest):
        for whole in (0, 1, 2, 5, 2 ** (bits - 1) + 1, 2**bits - 1):
            tie = (whole + 0.5) * 2.0 ** (exponent - bits + 1)
            for nudge in (0.0, 2.0**-30, -(2.0**-30), 2.0**-45, -(2.0**-45), 2.0**-50, -(2.0**-50)):
                values += [tie * (1 + nudge), -tie * (1 + nudge)]
    return torch.tensor(values, dtype=torch.float64)


def by_kernel(values, dtype):
    """The same through the compiled kernel: one source with weight 1."""
    raws = np.frombuffer(tensor_bytes(values), dtype=np.uint8).copy().reshape(1, -1)
    outs, sums = np.empty((1, len(values) * dtype.itemsize), dtype=np.uint8), np.empty(3)
    one, none = np.zeros(1, dtype=np.int64), np.empty((0, 0), dtype=np.bool_)
    native.merge_tile(
        raws, one + F64, len(values), np.array([0, 1]), one, np.ones(1), np.ones(1), none, 1.0,
        WEIGHTED_SUM, np.empty(0), False, 1.0, 1.0, -1, np.ones(1), native.HALF_VALUES, outs,
        CODES[dtype_code(dtype)], sums,
    )  # fmt: skip
    stored = torch.from_numpy(outs[0]).view(dtype)
    exact = values[torch.isfinite(stored)]
    if len(exact) == len(values):
        lost = (stored.double() - values).square().sum().item()
        assert sums[1] == pytest.approx(lost, rel=1e-9, abs=1e-300)
        assert sums[0] == pytest.approx(values.square().sum().item(), rel=1e-9)
    return stored


def one_by_one(values, dtype):
    """As `by_kernel`, each value in a tile of its own: a hard neighbour must not decide which way it is rounded."""
    return torch.cat([by_kernel(value.reshape(1), dtype) for value in values])


@pytest.mark.parametrize("rounding", [round_once, by_kernel, one_by_one])
@pytest.mark.parametrize("dtype", BITS)
def test_one_rounding_at_every_kind_of_tie(dtype, rounding):
    values = hard_cases(dtype)
    stored = rounding(values, dtype)
    expected = [exactly(value, dtype) for value in values.tolist()]
    assert stored.dtype == dtype
    assert stored.double().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_both_ways_agree_on_every_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    scale = 10.0 ** torch.randint(-9, 6, (300_000,), generator=generator)
    values = torch.randn(300_000, generator=generator, dtype=torch.float64) * scale
    values[:4] = torch.tensor([0.0, -0.0, float("inf"), -float("inf")])
    one, other = round_once(values, dtype), by_kernel(values, dtype)
    assert torch.equal(one.view(torch.int16), other.view(torch.int16))
    assert by_kernel(torch.tensor([float("nan")], dtype=torch.float64), dtype).isnan().all()


def test_torch_rounds_twice_there():
    """Why this exists: 1 + 2⁻⁸ + 2⁻⁴⁰ lies above the tie of bf16 at 1 + 2⁻⁸ and must go up."""
    value = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert value.bfloat16().item() == 1.0
    assert round_once(value, torch.bfloat16).item() == 1 + 2.0**-7


def test_fp64_is_itself_and_overflow_is_infinite():
    values = torch.tensor([1e300, 2.0], dtype=torch.float64)
    assert round_once(values, torch.float64) is values
    assert round_once(values, torch.float16).tolist() == [float("inf"), 2.0]
    assert not is_finite(round_once(values, torch.bfloat16))


def test_is_finite():
    assert is_finite(torch.tensor([60000.0, 60000.0]).half())  # whose sum is not
    assert not is_finite(torch.tensor([1.0, float("nan")]))
    assert not is_finite(torch.tensor([float("inf"), float("-inf")]))
