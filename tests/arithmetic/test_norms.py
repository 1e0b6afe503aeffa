import pytest
import torch

from skillgraft.arithmetic import norms
from skillgraft.arithmetic.norms import frobenius_norm, gaussian_factors, gaussian_like, product_norm


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_norms(monkeypatch):
    tensor = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    assert frobenius_norm(tensor) == 5.0
    monkeypatch.setattr(norms, "_CHUNK_ELEMENTS", 3)
    assert frobenius_norm(tensor) == 5.0
    a, b = torch.randn(3, 20), torch.randn(30, 3)
    assert product_norm(a, b) == pytest.approx((b.double() @ a.double()).norm().item(), rel=1e-12)
    assert product_norm(a, b * 0) == 0


def test_gaussians_have_the_norm():
    for shape in ((4, 5), (7,), (), (2, 3, 4)):
        assert frobenius_norm(gaussian_like(shape, 2.5, generator())) == pytest.approx(2.5, rel=1e-6)
    a, b = gaussian_factors((30, 20), 3, 0.01, generator())
    assert (a.shape, b.shape) == ((3, 20), (30, 3))
    assert (b.double() @ a.double()).norm().item() == pytest.approx(0.01, rel=1e-6)
    assert torch.linalg.matrix_rank(b @ a, rtol=1e-5) == 3
