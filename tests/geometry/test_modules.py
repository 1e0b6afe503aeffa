import pytest

from skillgraft.geometry.modules import KINDS, kind_of, layer_groups, layer_of


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.11.self_attn.q_proj.weight", 11, "q"),
        ("model.layers.0.self_attn.q_norm.weight", 0, "norm"),
        ("model.layers.3.mlp.down_proj.weight", 3, "down"),
        ("model.layers.3.mlp.experts.17.up_proj.weight", 3, "up"),
        ("model.layers.3.mlp.gate.weight", 3, "router"),
        ("model.layers.2.self_attn.k_proj.bias", 2, "bias"),
        ("model.layers.2.input_layernorm.weight", 2, "norm"),
        ("model.embed_tokens.weight", None, "embedding"),
        ("model.norm.weight", None, "norm"),
        ("lm_head.weight", None, "head"),
        ("transformer.h.5.attn.c_attn.weight", 5, "qkv"),
        ("transformer.h.5.attn.c_proj.weight", 5, "o"),
        ("transformer.h.5.mlp.c_proj.weight", 5, "down"),
        ("transformer.h.5.ln_1.weight", 5, "norm"),
        ("transformer.wte.weight", None, "embedding"),
        ("gpt_neox.layers.4.attention.query_key_value.weight", 4, "qkv"),
        ("gpt_neox.layers.4.attention.dense.weight", 4, "attention"),
        ("gpt_neox.layers.4.mlp.dense_4h_to_h.weight", 4, "down"),
        ("model.layers.7.mlp.shared_expert.linear.weight", 7, "mlp"),
        ("something.else", None, "other"),
    ],
)
def test_names(name, layer, kind):
    assert (layer_of(name), kind_of(name)) == (layer, kind)
    assert kind in KINDS


@pytest.mark.parametrize(
    ("layers", "groups"),
    [(30, [(0, 9), (10, 19), (20, 29)]), (22, [(0, 6), (7, 14), (15, 21)]), (2, [(0, 0), (1, 1)]), (0, [])],
)
def test_layer_groups(layers, groups):
    assert layer_groups(layers) == groups
