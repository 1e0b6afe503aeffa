import pytest
import torch

from skillgraft.arithmetic import methods
from skillgraft.arithmetic.methods import (
    add_scaled,
    difference,
    frobenius_norm,
    gaussian_factors,
    gaussian_like,
    product_norm,
    rounding_loss,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_difference_by_hand():
    rl, sft = torch.tensor([1.5, -2.0, 0.0]), torch.tensor([1.0, 2.0, 0.0])
    assert torch.equal(difference(rl, sft), torch.tensor([0.5, -4.0, 0.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_difference_is_the_fp64_one_rounded_once(dtype):
    rl, sft = torch.randn(1000).to(dtype), torch.randn(1000).to(dtype)
    assert difference(rl, sft).dtype == torch.float32
    assert torch.equal(difference(rl, sft), (rl.double() - sft.double()).float())


def test_add_scaled_by_hand():
    result = add_scaled(torch.tensor([1.0, 2.0]), torch.tensor([4.0, -2.0]), 0.5)
    assert torch.equal(result, torch.tensor([3.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_scale_of_zero_returns_the_target_bit_for_bit(dtype):
    target = torch.tensor([1.0, -0.0, 3e-8, float("inf"), float("nan")], dtype=dtype)
    result = add_scaled(target, torch.tensor([1.0, 0.0, 2.0, float("nan"), 1.0]), 0.0)
    assert torch.equal(result.view(torch.uint8), target.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_rounding_to_the_stored_dtype(dtype):
    """fp32 arithmetic, then one cast: the stored value is a neighbour of the fp64 result, never two roundings away."""
    target, delta = (
        torch.randn(20_000, generator=generator()).to(dtype),
        torch.randn(20_000, generator=generator(1)) * 1e-3,
    )
    result = add_scaled(target, delta, 0.7)
    exact = target.double() + 0.7 * delta.double()
    assert result.dtype == dtype
    assert torch.equal(result, (target.float() + delta * 0.7).to(dtype))
    # Half a unit in the last place of the result, and fp32's own error of two operations.
    half_unit = torch.finfo(dtype).eps / 2 * torch.exp2(torch.floor(torch.log2(exact.abs())))
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    assert ((result.double() - exact).abs() <= half_unit * 1.001 + 2e-7 * exact.abs() + smallest).all()
    same = (result == exact.to(dtype)).double().mean()
    assert same > 0.999  # they part only where fp32's error crosses a midpoint


def test_casting_to_another_dtype():
    target = torch.randn(100)
    delta = torch.randn(100) * 1e-2
    assert torch.equal(add_scaled(target, delta, 1.0, torch.bfloat16), (target + delta).bfloat16())
    assert torch.equal(add_scaled(target, delta, 0.0, torch.bfloat16), target.bfloat16())


def test_an_fp64_target_keeps_its_precision():
    target = torch.tensor([1.0 + 1e-12], dtype=torch.float64)
    assert add_scaled(target, torch.tensor([1.0]), 1.0).item() == 2.0 + 1e-12


def test_a_chunk_has_the_same_bits_as_the_whole():
    target, delta = torch.randn(1013), torch.randn(1013)
    whole = add_scaled(target, delta, 0.3)
    for size in (1, 7, 64, 500):
        parts = [add_scaled(t, d, 0.3) for t, d in zip(target.split(size), delta.split(size), strict=True)]
        assert torch.equal(torch.cat(parts), whole)


def test_extracted_and_injected_at_one_is_rl_within_one_ulp():
    """|sft + (rl − sft) − rl| ≤ one ulp of max(|rl|, |sft|) in fp32; exact where both are within a factor of 2."""
    rl, sft = torch.randn(100_000, generator=generator()), torch.randn(100_000, generator=generator(1))
    error = (add_scaled(sft, difference(rl, sft), 1.0) - rl).abs()
    largest = torch.maximum(rl.abs(), sft.abs())
    ulp = torch.finfo(torch.float32).eps * torch.exp2(torch.floor(torch.log2(largest)))
    assert (error <= ulp).all()
    close = (rl / sft >= 0.5) & (rl / sft <= 2)
    assert close.any()
    assert (error[close] == 0).all()


def test_norms(monkeypatch):
    tensor = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert frobenius_norm(tensor) == 5.0
    monkeypatch.setattr(methods, "_CHUNK_ELEMENTS", 3)
    assert frobenius_norm(tensor) == 5.0
    a, b = torch.randn(3, 20), torch.randn(30, 3)
    assert product_norm(a, b) == pytest.approx((b.double() @ a.double()).norm().item(), rel=1e-12)
    assert product_norm(a, b * 0) == 0


def test_rounding_loss_by_hand(monkeypatch):
    """In bf16 the values next to 1 are 1 and 1 + 2⁻⁷: half of the first step survives, none of the second."""
    target = torch.tensor([1.0, 1.0, 0.0]).bfloat16()
    delta = torch.tensor([2.0**-7 + 2.0**-8 - 2.0**-10, 2.0**-10, 2.0**-7])
    stored = add_scaled(target, delta, 1.0)
    assert stored.tolist() == [1.0 + 2.0**-7, 1.0, 2.0**-7]
    expected = ((2.0**-8 - 2.0**-10) ** 2 + 2.0**-20, delta.double().square().sum().item())
    assert rounding_loss(stored, target, delta, 1.0) == expected
    monkeypatch.setattr(methods, "_CHUNK_ELEMENTS", 2)
    assert rounding_loss(stored, target, delta, 1.0) == expected


def test_gaussians_have_the_norm():
    for shape in ((4, 5), (7,), (), (2, 3, 4)):
        assert frobenius_norm(gaussian_like(shape, 2.5, generator())) == pytest.approx(2.5, rel=1e-6)
    a, b = gaussian_factors((30, 20), 3, 0.01, generator())
    assert (a.shape, b.shape) == ((3, 20), (30, 3))
    assert (b.double() @ a.double()).norm().item() == pytest.approx(0.01, rel=1e-6)
    assert torch.linalg.matrix_rank(b @ a, rtol=1e-5) == 3
