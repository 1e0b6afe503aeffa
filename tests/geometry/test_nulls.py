"""The variances that `nulls` states, against simulation; each null keeps what it says that it keeps."""

import math

import numpy as np
import pytest

from skillgraft.geometry.nulls import cosine_sd, isotropic_sd, subspace_overlap

DRAWS = 4000


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def orthogonal(rng, size):
    """A uniform orthogonal matrix (Stewart 1980): QR of a Gaussian one, signs by the diagonal of R."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def lowrank(rng, rows, columns, rank):
    return rng.standard_normal((rows, rank)) @ (rng.standard_normal((rank, columns)) * 3.0 ** -np.arange(rank)[:, None])


def close_to(values, sd):
    """Mean 0 and standard deviation `sd`, within the error of the simulation for a kurtosis up to 9."""
    assert abs(np.mean(values)) < 4 * sd / math.sqrt(len(values))
    assert np.mean(np.square(values)) == pytest.approx(sd**2, rel=4 * math.sqrt(8 / len(values)))


def test_uniform_directions(rng):
    draws = rng.standard_normal((2, DRAWS, 50))
    cosines = (draws[0] * draws[1]).sum(1) / np.linalg.norm(draws, axis=2).prod(0)
    close_to(cosines, isotropic_sd(50))
    assert isotropic_sd(2**20) == 2.0**-10


@pytest.mark.parametrize(("ranks"), [(1, 1), (1, 6), (6, 6)])
def test_rotating_both_sides_keeps_the_spectrum_and_is_isotropic(rng, ranks):
    a, b = (lowrank(rng, 9, 6, rank) for rank in ranks)
    found = []
    for _ in range(DRAWS):
        turned = orthogonal(rng, 9) @ b @ orthogonal(rng, 6)
        found.append((a * turned).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert np.linalg.svd(turned, compute_uv=False) == pytest.approx(np.linalg.svd(b, compute_uv=False), abs=1e-9)
    close_to(found, isotropic_sd(54))


@pytest.mark.parametrize("rank", [1, 3])
def test_flipping_signs_of_elements_or_of_rows_and_columns(rng, rank):
    a, b = lowrank(rng, 8, 5, rank), lowrank(rng, 8, 5, rank) * rng.exponential(size=(8, 5)) ** 2
    sd = cosine_sd((a**2 * b**2).sum(), (a**2).sum(), (b**2).sum())
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    elements = rng.choice([-1.0, 1.0], (DRAWS, 8, 5))
    close_to((a * b * elements).sum((1, 2)) / norms, sd)
    rows, columns = rng.choice([-1.0, 1.0], (DRAWS, 8, 1)), rng.choice([-1.0, 1.0], (DRAWS, 1, 5))
    values = (a * b * rows * columns).sum((1, 2)) / norms
    close_to(values, sd)
    assert np.mean((values / sd) ** 4) < 9 * (1 + 0.3)
    turned = b * rows[0] * columns[0]
    assert np.linalg.svd(turned, compute_uv=False) == pytest.approx(np.linalg.svd(b, compute_uv=False))


def test_rotating_the_longer_side_keeps_the_shorter_ones_subspaces(rng):
    shared = rng.standard_normal((2, 5))
    a, b = rng.standard_normal((12, 2)) @ shared, rng.standard_normal((12, 2)) @ shared
    variance = (a.T @ a * (b.T @ b)).sum() / 12
    sd = cosine_sd(variance, (a**2).sum(), (b**2).sum())
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    close_to([(a * (orthogonal(rng, 12) @ b)).sum() / norms for _ in range(DRAWS)], sd)
    assert sd > 1.2 * isotropic_sd(60)  # what both read from is shared: chance is wider
    assert variance == pytest.approx(np.linalg.norm(a @ b.T) ** 2 / 12)


@pytest.mark.parametrize(("p", "q", "d"), [(1, 1, 10), (3, 3, 20), (2, 5, 12), (8, 4, 40)])
def test_overlap_of_random_subspaces(rng, p, q, d):
    mean, sd = subspace_overlap(p, q, d)
    assert subspace_overlap(q, p, d) == (mean, sd)
    found = []
    for _ in range(DRAWS):
        one, other = (np.linalg.qr(rng.standard_normal((d, size)))[0] for size in (p, q))
        found.append((one.T @ other).reshape(-1) @ (one.T @ other).reshape(-1) / min(p, q))
    assert np.mean(found) == pytest.approx(mean, abs=4 * sd / math.sqrt(DRAWS))
    assert np.std(found) == pytest.approx(sd, rel=0.12)
    assert mean == pytest.approx(max(p, q) / d)


def test_a_subspace_that_is_everything():
    assert subspace_overlap(3, 5, 5) == (1.0, 0.0)
    assert subspace_overlap(1, 1, 1) == (1.0, 0.0)


def test_zero_vectors_have_no_cosine():
    assert cosine_sd(1.0, 0.0, 2.0) is None
