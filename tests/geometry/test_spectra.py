"""Singular values, ranks and angles: hand-computed cases, NumPy's SVD, and the matrices of real operands."""

import math

import numpy as np
import pytest
import torch

from skillgraft.geometry import compare
from skillgraft.geometry import spectra as spectra_module
from skillgraft.geometry.spectra import effective_rank, energy, principal_angles, stable_rank
from tests.tiny import tiny_checkpoint, tiny_finetune

Q_PROJ, DOWN = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"


def test_ranks_by_hand():
    assert effective_rank(np.ones(7)) == pytest.approx(7)
    assert effective_rank(np.array([3.0, 0.0, 0.0])) == 1
    # shares 3/4 and 1/4: H = -(0.75 ln 0.75 + 0.25 ln 0.25)
    assert effective_rank(np.array([3.0, 1.0])) == pytest.approx(math.exp(0.5623351446188083))
    assert stable_rank(np.array([3.0, 1.0])) == pytest.approx(10 / 9)
    assert stable_rank(np.ones(5)) == pytest.approx(5)
    assert energy(np.array([3.0, 1.0]), 1) == pytest.approx(0.9)
    assert energy(np.array([3.0, 1.0]), 2) == 1


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-6, 0.3, 1.2, math.pi / 2 - 1e-9, math.pi / 2])
def test_angles_of_known_planes(angle):
    """Two planes in four dimensions that meet at 0.1 and at `angle`, in any bases of theirs."""
    one = np.eye(4)[:, :2]
    other = np.zeros((4, 2))
    other[[0, 2], 0] = math.cos(0.1), math.sin(0.1)
    other[[1, 3], 1] = math.cos(angle), math.sin(angle)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    found = principal_angles(one @ turn.T, other @ turn)
    assert found == pytest.approx(sorted([0.1, angle]), abs=1e-15)


def test_angles_of_subspaces_of_other_dimensions():
    line = np.array([[math.cos(0.2)], [0.0], [math.sin(0.2)]])
    plane = np.eye(3)[:, :2]
    assert principal_angles(line, plane) == pytest.approx([0.2])
    assert principal_angles(plane, line) == pytest.approx([0.2])


@pytest.fixture(scope="module")
def facts(zoo):
    given = [f"a={zoo / 'a'}", f"b={zoo / 'b'}", f"adapter={zoo / 'adapter'}"]
    return compare(given, zoo / "base", with_spectra=True, rank=3)


@pytest.mark.parametrize("name", [Q_PROJ, DOWN, EMBEDDING])  # square, wide, tall
@pytest.mark.parametrize("label", ["a", "b", "adapter"])
def test_spectra_of_operands(facts, vectors, name, label):
    place = ["a", "b", "adapter"].index(label)
    found = facts["tensors"][name]["vectors"][place].get("spectrum")
    values = np.linalg.svd(vectors[label][name].numpy(), compute_uv=False)
    if not values[0]:
        assert found is None
        return
    values = np.where(values > 1e-9 * values[0], values, 0)
    assert found["rank"] == np.count_nonzero(values)
    assert found["effective_rank"] == pytest.approx(effective_rank(values), rel=1e-6)
    assert found["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-9)
    assert found["energy"]["8"] == pytest.approx((values[:8] ** 2).sum() / (values**2).sum(), rel=1e-9)


@pytest.mark.parametrize("name", [Q_PROJ, DOWN, EMBEDDING])
def test_angles_of_operands(facts, vectors, name):
    found = facts["tensors"][name]["pairs"][0]["subspaces"]
    (ua, _, va), (ub, _, vb) = (np.linalg.svd(vectors[label][name].numpy(), full_matrices=False) for label in "ab")
    for side, one, other in (("left", ua, ub), ("right", va.T, vb.T)):
        cosines = np.linalg.svd(one[:, :3].T @ other[:, :3], compute_uv=False)
        assert found[side]["degrees"] == pytest.approx(np.degrees(np.arccos(cosines)), abs=1e-5)
        assert found[side]["overlap"] == pytest.approx((cosines**2).mean(), rel=1e-6)
        assert found[side]["expected"] == 3 / one.shape[0]


def test_an_adapter_has_the_subspaces_of_its_rank(facts):
    pair = facts["tensors"][Q_PROJ]["pairs"][1]
    assert len(pair["subspaces"]["left"]["degrees"]) == 2  # of rank 3 and rank 2
    assert facts["vectors"][2]["spectrum"]["rank"] == 2
    assert facts["vectors"][2]["spectrum"]["matrices"] == 14  # seven linear layers in each of two
    assert "subspaces" not in facts["tensors"][EMBEDDING]["pairs"][1]


def test_the_rotation_null_of_a_matrix(facts, vectors):
    for name in (Q_PROJ, DOWN, EMBEDDING):
        a, b = vectors["a"][name], vectors["b"][name]
        short = (a.T @ a * (b.T @ b)).sum() if a.shape[0] >= a.shape[1] else (a @ a.T * (b @ b.T)).sum()
        sd = math.sqrt(short.item() / max(a.shape)) / (a.norm() * b.norm()).item()
        assert facts["tensors"][name]["pairs"][0]["chance_sd"]["rotation"] == pytest.approx(sd, rel=1e-9)


def test_blocks_change_nothing_but_the_last_digits(facts, zoo, monkeypatch):
    monkeypatch.setattr(spectra_module, "BLOCK_ELEMENTS", 100)
    again = compare([f"a={zoo / 'a'}", f"b={zoo / 'b'}"], zoo / "base", with_spectra=True, rank=3)
    one, other = (found["tensors"][EMBEDDING] for found in (facts, again))
    assert other["vectors"][0]["spectrum"]["effective_rank"] == pytest.approx(
        one["vectors"][0]["spectrum"]["effective_rank"], rel=1e-9
    )
    assert other["pairs"][0]["subspaces"]["left"]["degrees"] == pytest.approx(
        one["pairs"][0]["subspaces"]["left"]["degrees"], abs=1e-6
    )


def test_independent_noise_looks_like_chance(tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    given = [tiny_finetune(base, tmp_path / f"x{seed}", seed=seed, size=1e-3) for seed in (1, 2, 3, 4)]
    found = compare([str(path) for path in given], base, with_spectra=True)
    for pair in found["pairs"]:
        assert abs(pair["z"]) < 4
        assert 0.5 < pair["rms_z"] < 2
        assert "as chance would have it" in pair["sentence"]
        for side in ("left", "right"):
            assert abs(pair["subspaces"][side]["z"]) < 5


def test_a_shared_direction_is_found(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", dtype=torch.float32)
    common = tiny_finetune(base, tmp_path / "common", seed=9, size=1e-3)
    one, two = (tiny_finetune(common, tmp_path / name, seed=seed, size=1e-3) for name, seed in (("x", 1), ("y", 2)))
    pair = compare([str(one), str(two)], base)["pairs"][0]
    assert pair["cosine"] == pytest.approx(0.5, abs=0.05)
    assert pair["z"] > 20
    assert pair["rms_z"] > pair["rms_z_limit"]
