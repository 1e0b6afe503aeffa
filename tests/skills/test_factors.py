"""The truncated decompositions against the full one (Eckart & Young 1936)."""

import pytest
import torch

from skillgraft.compression import factors
from skillgraft.compression.factors import product_svd, squared_spectrum, truncated_svd


def noise(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (600, 300), (300, 600), (7, 1)])
@pytest.mark.parametrize("rank", [1, 5, 1000])
def test_no_better_approximation_of_that_rank_exists(shape, rank):
    matrix = noise(*shape)
    s = torch.linalg.svdvals(matrix.double())
    rank = min(rank, *shape)
    best = s[rank:].square().sum().item() ** 0.5
    found = truncated_svd(matrix, rank)
    a, b = found.balanced()
    assert (b @ a - matrix).norm().item() == pytest.approx(best, rel=1e-6, abs=1e-5)
    assert found.s.double() == pytest.approx(s[:rank], rel=1e-5)
    assert torch.allclose(found.u.T @ found.u, torch.eye(rank, dtype=found.u.dtype), atol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_flat_spectrum_in_fp32(bf16, monkeypatch):
    """The iteration is what finds them: noise has no gap to help it."""
    monkeypatch.setattr(factors, "FP64_SIDE", 0)
    monkeypatch.setattr(factors, "fast_bf16", lambda: bf16)
    matrix = noise(900, 500)
    exact = torch.linalg.svdvals(matrix.double()).square()
    a, b = truncated_svd(matrix, 16).balanced()
    lost = (b.double() @ a.double() - matrix.double()).norm().item()
    assert lost == pytest.approx(exact[16:].sum().item() ** 0.5, rel=4e-7)


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.95])
@pytest.mark.parametrize(("side", "bf16"), [(0, False), (0, True), (1024, False)])
def test_a_steep_spectrum(decay, side, bf16, monkeypatch):
    """Leading directions must not drown those that follow; bf16 alone would lose them."""
    monkeypatch.setattr(factors, "fast_bf16", lambda: bf16)
    monkeypatch.setattr(factors, "FP64_SIDE", side)
    u, _, vt = torch.linalg.svd(noise(600, 300).double(), full_matrices=False)
    s = decay ** torch.arange(300, dtype=torch.float64)
    found = truncated_svd(((u * s) @ vt).float(), 20)
    lost = ((found.u.double() * found.s) @ found.vt.double() - (u * s) @ vt).norm().item()
    assert lost == pytest.approx(s[20:].norm().item(), rel=1e-4, abs=2e-7 if side else 1e-5)


def test_spectra():
    matrix = noise(50, 80)
    exact = torch.linalg.svdvals(matrix.double()).square()
    assert torch.allclose(squared_spectrum(matrix), exact)
    a, b = noise(4, 80, 1), noise(50, 4, 2)
    found = product_svd(a, b)
    assert torch.allclose(found.s, torch.linalg.svdvals(b.double() @ a.double())[:4])
    assert torch.allclose((found.u * found.s) @ found.vt, b.double() @ a.double())


def test_a_matrix_of_low_rank_comes_back():
    product = noise(400, 3, 1) @ noise(3, 300, 2)
    a, b = truncated_svd(product, 3).balanced()
    assert torch.allclose((b @ a).float(), product, atol=1e-5)
    assert truncated_svd(torch.zeros(300, 400), 2).s.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("decay", "again"), [(0.99, False), (0.9, True)])
def test_fp32_goes_on_where_little_is_left_out(decay, again, monkeypatch):
    monkeypatch.setattr(factors, "FP64_SIDE", 0)
    monkeypatch.setattr(factors, "fast_bf16", lambda: True)
    used, krylov = [], factors._krylov
    monkeypatch.setattr(factors, "_krylov", lambda tall, *rest: (used.append(tall.dtype), krylov(tall, *rest))[1])
    u, _, vt = torch.linalg.svd(noise(600, 500).double(), full_matrices=False)
    s = decay ** torch.arange(500, dtype=torch.float64)
    matrix = ((u * s) @ vt).float()
    a, b = truncated_svd(matrix, 20).balanced()
    lost = (b.double() @ a.double() - matrix.double()).norm().item()
    assert lost == pytest.approx(s[20:].norm().item(), rel=1e-6)
    assert used == [torch.bfloat16, torch.float32][: 1 + again]


def test_the_same_every_time():
    matrix = noise(600, 300)
    one, two = truncated_svd(matrix, 8), truncated_svd(matrix, 8)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
