import torch

from skillgraft.skills.forms import (
    FORMS,
    Storage,
    decode_dense,
    decode_lowrank,
    encode_dense,
    encode_lowrank,
    stored_names,
    stored_specs,
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
    assert FORMS.keys() == {"dense", "lowrank", "sparse", "packed"}
    assert stored_names("w", "dense") == ("w",)
    assert stored_names("w", "lowrank") == ("w.lowrank_a", "w.lowrank_b")
    assert stored_specs("w", Storage("dense", (2, 3), "F32")) == (("w", "F32", (2, 3)),)
    assert stored_specs("w", Storage("lowrank", (2, 3), "BF16", 1)) == (
        ("w.lowrank_a", "BF16", (1, 3)),
        ("w.lowrank_b", "BF16", (2, 1)),
    )
    assert stored_specs("w", Storage("sparse", (300, 300), "F16", count=7, coding="places")) == (
        ("w.sparse_offsets", "I64", (3,)),
        ("w.sparse_index", "U16", (7,)),
        ("w.sparse_values", "F16", (7,)),
    )
    assert stored_specs("w", Storage("sparse", (3, 3), "F32", count=7, coding="bitmap"))[1].shape == (2,)
    assert stored_specs("w", Storage("packed", (65, 5), "BF16", 3, bits={8: 1, 3: 2})) == (
        ("w.packed_a", "U8", (5 + 2 * 2,)),
        ("w.packed_b", "U8", (65 + 2 * 25,)),
        ("w.packed_a_scales", "BF16", (3, 1)),
        ("w.packed_b_scales", "BF16", (3, 2)),
    )
