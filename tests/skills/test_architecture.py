import pytest

from skillgraft.checkpoint import read_layout
from skillgraft.checkpoint.layout import Layout
from skillgraft.skills.architecture import architecture_differences, architecture_facts
from tests.tiny import tiny_checkpoint


def facts(layout, config):
    return architecture_facts(Layout(layout.path, config, layout.tensors))


def test_facts_of_a_checkpoint(tiny):
    assert architecture_facts(read_layout(tiny)).model_dump() == {
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_size": 32,
        "vocab_size": 320,
        "tie_word_embeddings": True,
        "rope": {"rope_theta": 10000.0, "rope_type": "default"},
    }


def test_old_and_new_rope_settings_are_the_same(tiny):
    layout = read_layout(tiny)
    old = facts(layout, {"rope_theta": 10000, "rope_scaling": None})
    new = facts(layout, {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}})
    assert architecture_differences(old, new) == []
    scaled = facts(layout, {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert architecture_differences(scaled, new) == ["RoPE rope_type is 'linear', expected 'default'"]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"num_attention_heads": 8}, "num_attention_heads is 8, expected 4"),
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, expected 2"),
        ({"head_dim": 4}, "head_dim is 4, expected 8"),
        ({"model_type": "mistral"}, "model_type is 'mistral', expected 'llama'"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, expected True"),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            "RoPE rope_theta is 500000.0, expected 10000.0",
        ),
    ],
)
def test_differences(tiny, change, difference):
    layout = read_layout(tiny)
    changed = facts(layout, {**layout.config, **change})
    assert architecture_differences(changed, architecture_facts(layout)) == [difference]
    assert architecture_differences(architecture_facts(layout), architecture_facts(layout)) == []


def test_what_a_config_leaves_open_is_derived_or_unknown(tiny, tmp_path):
    bare = facts(read_layout(tiny), {"hidden_size": 64, "num_attention_heads": 4})
    assert (bare.head_dim, bare.num_key_value_heads, bare.tie_word_embeddings, bare.rope) == (16, 4, None, {})
    untied = read_layout(tiny_checkpoint(tmp_path / "untied", tie=False))
    assert facts(untied, {}).tie_word_embeddings is False
    nested = facts(read_layout(tiny), {"text_config": {"num_attention_heads": 6}, "model_type": "outer"})
    assert (nested.num_attention_heads, nested.model_type) == (6, "outer")
