import pytest

from skillgraft.skills.modules import by_kind, kind_rows, module_kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("transformer.wte.weight", "embedding"),
        ("gpt_neox.embed_in.weight", "embedding"),
        ("lm_head.weight", "head"),
        ("embed_out.weight", "head"),
        ("model.norm.weight", "norm"),
        ("model.layers.0.input_layernorm.weight", "norm"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("transformer.h.0.ln_1.bias", "norm"),
        ("model.layers.3.self_attn.q_proj.weight", "attention"),
        ("model.layers.3.self_attn.q_proj.bias", "attention"),
        ("gpt_neox.layers.0.attention.dense.weight", "attention"),
        ("model.layers.3.mlp.down_proj.weight", "mlp"),
        ("model.layers.3.mlp.experts.0.w1.weight", "mlp"),
        ("model.layers.3.block_sparse_moe.gate.weight", "mlp"),
        ("backbone.layers.0.mixer.in_proj.weight", "other"),
        ("scale", "other"),
    ],
)
def test_kinds(name, kind):
    assert module_kind(name) == kind


def test_rows_by_hand():
    tensors = {"lm_head.weight": ((4, 3), 2.0), "a.mlp.x.weight": ((2, 2), 3.0), "b.mlp.y.weight": ((5,), 6.0)}
    assert list(by_kind(tensors)) == ["mlp", "head"]
    rows = [tuple(row) for row in kind_rows(tensors)]
    assert rows == [("mlp", 2, 9, pytest.approx(45**0.5), pytest.approx(45 / 49)), ("head", 1, 12, 2.0, 4 / 49)]
    assert [row.share for row in kind_rows({"a": ((1,), 0.0)})] == [0.0]
