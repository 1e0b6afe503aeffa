import pytest
import torch
from peft import get_peft_model

from skillgraft.adapters.lora import (
    LoraAdapter,
    empty_model,
    lora_config,
    merged,
    roll_out_merged,
    save_trained,
)
from skillgraft.data.documents import Document
from skillgraft.errors import RecipeError
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.train.sft import train_sft
from tests.tiny import edit_json, tiny_checkpoint, weights


@pytest.fixture
def start(tmp_path):
    return tiny_checkpoint(tmp_path / "start")


def with_factors(directory, dtype=torch.float32):
    """A PEFT model whose factors are not zero."""
    model = get_peft_model(load_model(directory, dtype), lora_config({"r": 2}))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model.eval()


IDS = torch.arange(5, 25).reshape(2, 10)


def test_merged_gives_the_same_logits_and_puts_the_weights_back(start):
    model = with_factors(start)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        apart = model(input_ids=IDS).logits
        plain = model.get_base_model()
        with model.disable_adapter():
            frozen = plain(input_ids=IDS).logits
        with merged(model):
            together = model(input_ids=IDS).logits
        after = model(input_ids=IDS).logits
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(frozen, apart, atol=1e-3)
    assert torch.equal(after, apart)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad == ("lora_" in name) for name, p in model.named_parameters())


def test_merged_restores_bf16_weights_bit_for_bit_even_after_an_error(start):
    model = with_factors(start, torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="rollout broke"), merged(model):
        raise RuntimeError("rollout broke")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_generate_runs_merged(start):
    model = with_factors(start)
    arguments = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "max_new_tokens": 5, "do_sample": False}
    apart = model.generate(**arguments)
    used = []
    for layer in model.modules():
        if type(layer).__name__ == "Linear" and "lora" in type(layer).__module__:
            layer.register_forward_hook(lambda module, inputs, output: used.append(module.disable_adapters))
    roll_out_merged(model, LoraAdapter({}))
    assert torch.equal(model.generate(**arguments), apart)
    assert used
    assert all(used)


def test_saved_weights_are_start_plus_factors_in_fp32(start, tmp_path):
    model = with_factors(start, torch.bfloat16)
    out = tmp_path / "out"
    out.mkdir()
    save_trained(model, start, out, load_tokenizer(start), LoraAdapter({}))
    saved, before = weights(out), weights(start)
    name = "model.layers.1.mlp.up_proj.weight"
    factors = {n: p.detach() for n, p in model.named_parameters() if "layers.1.mlp.up_proj.lora" in n}
    a, b = (next(p for n, p in factors.items() if which in n) for which in ("lora_A", "lora_B"))
    torch.testing.assert_close(saved[name], before[name] + (16 / 2) * (b.float() @ a.float()), rtol=0, atol=1e-6)
    assert torch.equal(saved["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert (out / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [({"rank": 4}, "'rank' is not an argument"), ({"r": 0}, "r is 0, expected a rank of at least 1")],
)
def test_bad_lora(start, given, message):
    with pytest.raises(RecipeError, match=message):
        get_peft_model(load_model(start), lora_config(given))


def test_a_pattern_without_a_module_is_refused_and_nothing_random_is_drawn(start):
    model = load_model(start)
    state = torch.get_rng_state()
    with pytest.raises(RecipeError, match="target_modules: 'foo' matches no module; available: down_proj, embed_token"):
        LoraAdapter({"target_modules": ["q_proj", "foo"]}).apply(model)
    with pytest.raises(RecipeError, match=r"PEFT refuses this: Target module LlamaRMSNorm.* matrices: embed_tokens, q"):
        LoraAdapter({"target_modules": ["input_layernorm"]}).apply(model)
    assert LoraAdapter({"r": 2}).apply(model).target_modules == "all-linear"
    assert torch.equal(torch.get_rng_state(), state)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_training_says_the_same_where_nothing_was_planned(start, tmp_path):
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    document = Document("a", "Vell", "The harbour of Vell was built in 1901.")
    with pytest.raises(RecipeError, match="adapt: target_modules: 'foo' matches no module"):
        train_sft(
            start,
            tmp_path / "out",
            tmp_path / "work",
            documents=[document],
            adapter=LoraAdapter({"target_modules": ["foo"]}),
        )
    assert not list((tmp_path / "out").iterdir())


def test_a_model_that_transformers_does_not_know_is_not_asked(start):
    edit_json(start / "config.json", model_type="nobodys")
    assert empty_model(start) is None
