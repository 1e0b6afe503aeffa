import torch

from skillgraft.skills.forms import (
    FORMS,
    decode_dense,
    decode_lowrank,
    encode_dense,
    encode_lowrank,
    stored_names,
    stored_shapes,
)


def test_dense_round_trip():
    delta = torch.randn(3, 4)
    assert torch.equal(decode_dense(*encode_dense(delta, torch.float32)), delta)
    half = decode_dense(*encode_dense(delta, torch.bfloat16))
    assert half.dtype == torch.float32
    assert torch.equal(half, delta.bfloat16().float())


def test_lowrank_is_the_scaled_product():
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0], [-4.0]])
    stored = encode_lowrank(a, b, 0.5, torch.float32)
    assert torch.equal(stored[0], a)
    assert torch.equal(stored[1], torch.tensor([[5.0], [-2.0]]))
    assert torch.equal(decode_lowrank(*stored), torch.tensor([[5.0, 10.0, 15.0], [-2.0, -4.0, -6.0]]))


def test_lowrank_multiplies_in_fp32():
    a, b = torch.randn(4, 8).bfloat16(), torch.randn(6, 4).bfloat16()
    stored = encode_lowrank(a, b, 3.0, torch.float32)
    assert torch.equal(decode_lowrank(*stored), (b.float() * 3.0) @ a.float())


def test_names_and_shapes():
    assert FORMS.keys() == {"dense", "lowrank"}
    assert stored_names("w", "dense") == ("w",)
    assert stored_names("w", "lowrank") == ("w.lowrank_a", "w.lowrank_b")
    assert stored_shapes("dense", (2, 3), None) == ((2, 3),)
    assert stored_shapes("lowrank", (2, 3), 1) == ((1, 3), (2, 1))
