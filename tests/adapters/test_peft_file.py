import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillgraft.adapters.peft_file import adapter_base, read_adapter
from skillgraft.errors import CheckpointError, CompatibilityError, MissingPathError
from tests.tiny import edit_json

MODULE = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "bias": "none", "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    prefix = f"base_model.model.{MODULE}"
    save_file(
        {f"{prefix}.lora_A.weight": torch.randn(2, 5), f"{prefix}.lora_B.weight": torch.randn(7, 2)},
        folder / "adapter_model.safetensors",
    )
    return folder


def test_an_adapter_is_its_factors_and_scaling(adapter):
    read = read_adapter(adapter)
    (name,) = read.deltas
    delta = read.deltas[name]
    assert name == f"{MODULE}.weight"
    assert (delta.shape, delta.rank, delta.scaling) == ((7, 5), 2, 1.5)
    assert adapter_base(adapter) == "some/base"


@pytest.mark.parametrize(
    ("change", "scaling"),
    [
        ({"use_rslora": True}, 3 / math.sqrt(2)),
        ({"alpha_pattern": {"q_proj": 8}}, 4.0),
        ({"alpha_pattern": {"proj": 8, r"layers\.\d\.self_attn\.q_proj": 10}}, 5.0),
        ({"alpha_pattern": {"k_proj": 8}}, 1.5),
        ({"r": 9, "rank_pattern": {"q_proj": 2}}, 1.5),
        ({"r": 9, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}, "use_rslora": True}, 5 / math.sqrt(2)),
    ],
)
def test_patterns_and_rslora(adapter, change, scaling):
    edit_json(adapter / "adapter_config.json", **change)
    assert read_adapter(adapter).deltas[f"{MODULE}.weight"].scaling == pytest.approx(scaling)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected 'LORA'"),
        ({"use_dora": True}, "use_dora is True: DoRA rescales"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]: it holds whole modules"),
        ({"bias": "all"}, "bias is 'all', expected 'none'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which rewrites"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_other_kinds_are_refused(adapter, change, message):
    edit_json(adapter / "adapter_config.json", **change)
    with pytest.raises(CompatibilityError, match=message) as caught:
        read_adapter(adapter)
    assert "adapter_config.json" in str(caught.value)
    assert "merge the adapter" in str(caught.value)


def test_neutral_initialisations_are_accepted(adapter):
    for value in (True, False, "gaussian", "eva", "orthogonal"):
        edit_json(adapter / "adapter_config.json", init_lora_weights=value)
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r": ...}, "r is None, expected a number"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', expected a number"),
        ({"alpha_pattern": {"q_proj": "x"}}, "q_proj is 'x', expected a number"),
        ({"alpha_pattern": {"q_proj": [1]}}, "expected a number"),
        ({"rank_pattern": {"q_proj": 2.5}}, "q_proj is 2.5, expected a number"),
        ({"rank_pattern": 3}, "rank_pattern is 3, expected a mapping"),
        ({"r": 4}, r"lora_A \[2, 5\] and lora_B \[7, 2\], expected rank 4"),
        ({"alpha_pattern": {"(": 1}}, "is not a regular expression"),
    ],
)
def test_damaged_configs(adapter, change, message):
    edit_json(adapter / "adapter_config.json", **change)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(adapter)


def test_other_tensors_are_refused(adapter):
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in (
        "base_model.model.lm_head.weight",
        f"base_model.model.{MODULE}.lora_magnitude_vector",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"{MODULE}.lora_A.weight",
    ):
        save_file({**tensors, name: torch.ones(2, 5)}, path)
        with pytest.raises(CompatibilityError, match="is not a LoRA factor of a linear layer") as caught:
            read_adapter(adapter)
        assert repr(name) in str(caught.value)


def test_a_lone_factor(adapter):
    path = adapter / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if "lora_A" in name}
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"'model\.layers\.0\.self_attn\.q_proj' has only lora_A"):
        read_adapter(adapter)


def test_missing_files(adapter, tmp_path):
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors.*pickle"):
        read_adapter(adapter)
    with pytest.raises(MissingPathError, match="no such directory"):
        read_adapter(tmp_path / "nothing")
