from fractions import Fraction

import numpy as np
import pytest
import torch

from skillgraft.arithmetic.rounding import is_finite, round_once, squared_loss
from skillgraft.arithmetic.scratch import Scratch

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


@pytest.mark.parametrize("dtype", BITS)
def test_one_rounding_at_every_kind_of_tie(dtype):
    values = hard_cases(dtype)
    stored = round_once(values, dtype, Scratch())
    expected = [exactly(value, dtype) for value in values.tolist()]
    assert stored.dtype == dtype
    assert stored.double().tolist() == expected


def test_torch_rounds_twice_there():
    """Why this exists: 1 + 2⁻⁸ + 2⁻⁴⁰ lies above the tie of bf16 at 1 + 2⁻⁸ and must go up."""
    value = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert value.bfloat16().item() == 1.0
    assert round_once(value, torch.bfloat16, Scratch()).item() == 1 + 2.0**-7


def test_fp64_is_itself_and_overflow_is_infinite():
    values = torch.tensor([1e300, 2.0], dtype=torch.float64)
    assert round_once(values, torch.float64, Scratch()) is values
    assert round_once(values, torch.float16, Scratch()).tolist() == [float("inf"), 2.0]
    assert not is_finite(round_once(values, torch.bfloat16, Scratch()))


def test_is_finite():
    assert is_finite(torch.tensor([60000.0, 60000.0]).half())  # whose sum is not
    assert not is_finite(torch.tensor([1.0, float("nan")]))
    assert not is_finite(torch.tensor([float("inf"), float("-inf")]))


def test_squared_loss_by_hand():
    exact = torch.tensor([1 + 2.0**-8 + 2.0**-10, 1 + 2.0**-10], dtype=torch.float64)
    scratch = Scratch()
    stored = round_once(exact, torch.bfloat16, scratch)
    assert stored.tolist() == [1 + 2.0**-7, 1.0]
    assert squared_loss(stored, exact, scratch) == (2.0**-8 - 2.0**-10) ** 2 + 2.0**-20
