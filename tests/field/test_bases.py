"""Bases that cannot be trained or asked are refused when the plan is checked, in one sentence; merging still works."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GPT2Config, GPTNeoXConfig, MistralConfig, Qwen3Config

from skillgraft.arithmetic import merge
from skillgraft.errors import CheckpointError
from skillgraft.models.loading import load_model
from skillgraft.models.preflight import check_checkpoint
from skillgraft.models.saving import first_not_finite, is_finite, save_checkpoint
from tests.field import families
from tests.field.bases import base_with, planned, recipe_on
from tests.tiny import edit_json, tiny_checkpoint, tiny_finetune, tiny_tokenizer, weights

CODE = {"auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
TRIPWIRE = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


def adapter_beside(base):
    (base / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}))


def code_of_its_own(base):
    edit_json(base / "config.json", model_type="own", **CODE)
    (base / "own.py").write_text(TRIPWIRE)


def code_for_a_known_kind(base):
    """A known model type beside the code: Transformers' own class is used, and the code is not run."""
    edit_json(
        base / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map={"AutoTokenizer": ["own.T", None]}
    )
    edit_json(base / "config.json", model_type="own", **CODE)
    (base / "own.py").write_text(TRIPWIRE)


def kind(model_type):
    return lambda base: edit_json(base / "config.json", model_type=model_type)


def generation(**keys):
    return lambda base: edit_json(base / "generation_config.json", **keys)


def rows_missing(base):
    tensors = load_file(base / "model.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:300].contiguous()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    edit_json(base / "config.json", vocab_size=300)


def added_token(base):
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    last = max(each["id"] for each in tokenizer["added_tokens"])
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 330, "content": "<|new|>"})
    assert last < 330
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))


def broken(file, text="{"):
    return lambda base: (base / file).write_text(text)


REFUSED = {
    "an adapter's files beside merged weights": (adapter_beside, "holds weights and adapter_config.json"),
    "code of its own": (code_of_its_own, "needs Python code that comes with the checkpoint, which is never run"),
    "a tokenizer's code": (code_for_a_known_kind, "needs Python code that comes with the checkpoint"),
    "an encoder": (kind("bert"), "a bert model is no causal language model that Transformers knows"),
    "an encoder of another family": (kind("xlm-roberta"), "a xlm-roberta model is no causal language model"),
    "an encoder and decoder that has a causal class": (kind("bart"), "a bart model is no causal language model"),
    "a text-to-text model": (kind("t5"), "a t5 model is no causal language model that Transformers knows"),
    "a picture model": (kind("vit"), "a vit model is no causal language model"),
    "a model newer than Transformers": (kind("llama9"), "Transformers cannot load the config"),
    "ids without embedding rows": (rows_missing, "embedding"),
    "an added token without a row": (added_token, "330"),
    "a text as end token": (generation(eos_token_id="</s>"), "eos_token_id is '</s>', expected a token id"),
    "end tokens within a list": (generation(eos_token_id=[[2]]), "eos_token_id is [[2]]"),
    "generation defaults that contradict": (
        generation(num_return_sequences=4, do_sample=False),
        "generation_config.json: Transformers refuses it",
    ),
    "half a generation configuration": (broken("generation_config.json"), "not readable as JSON"),
    "half a tokenizer": (broken("tokenizer.json"), "tokenizer.json"),
    "half a tokenizer's configuration": (broken("tokenizer_config.json"), "tokenizer_config.json"),
}


@pytest.mark.parametrize(("spoil", "says"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("stage", ["sft", "rl", "scores"])
def test_the_plan_refuses(tmp_path, spoil, says, stage):
    base = base_with(tmp_path / "base")
    spoil(base)
    settings = {"models": ["base"]} if stage == "scores" else {"from": "base"}
    with pytest.raises(CheckpointError) as caught:
        planned(recipe_on(tmp_path, **{stage: settings}))
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    assert not (base / "ran").exists()


@pytest.mark.parametrize("name", ["an adapter's files beside merged weights", "code of its own", "an encoder"])
def test_a_path_as_model_is_checked_as_well(tmp_path, name):
    spoil, says = REFUSED[name]
    spoil(base_with(tmp_path / "elsewhere"))
    with pytest.raises(CheckpointError, match=says[:25]):
        planned(recipe_on(tmp_path, scores={"models": ["base", "./elsewhere"]}))
    with pytest.raises(CheckpointError, match=says[:25]):
        load_model(tmp_path / "elsewhere")


@pytest.mark.parametrize("spoil", [code_of_its_own, kind("llama9"), kind("t5")], ids=["code", "newer", "t5"])
def test_what_cannot_be_asked_can_be_merged(tmp_path, spoil):
    base = base_with(tmp_path / "base")
    tuned = tiny_finetune(base, tmp_path / "tuned")
    for each in (base, tuned):
        spoil(each)
    models = [{"model": str(each), "weight": 0.5} for each in (base, tuned)]
    merge({"method": "linear", "base": str(base), "operands": models}, tmp_path / "out")
    first, second, made = weights(base), weights(tuned), weights(tmp_path / "out")
    for name, tensor in made.items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2, rtol=0, atol=1e-7)


@pytest.mark.parametrize("config", [GPTNeoXConfig, MistralConfig, Qwen3Config, GPT2Config, Gemma3TextConfig])
def test_what_is_causal_passes(tmp_path, config):
    base = base_with(tmp_path / "base")
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    made = config(vocab_size=320, eos_token_id=2, bos_token_id=1, pad_token_id=0, **small)
    AutoModelForCausalLM.from_config(made).save_pretrained(base)
    check_checkpoint(base)


def test_end_tokens_of_the_configuration_alone(tmp_path):
    base = base_with(tmp_path / "base")
    (base / "generation_config.json").unlink()
    check_checkpoint(base)
    edit_json(base / "config.json", eos_token_id="two")
    with pytest.raises(CheckpointError, match="eos_token_id"):
        check_checkpoint(base)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_that_is_no_number_is_found_wherever_it_stands(value, dtype):
    for place in (0, 3, 11):
        tensor = torch.ones(3, 4, dtype=dtype)
        assert is_finite(tensor)
        tensor.view(-1)[place] = value
        assert not is_finite(tensor)


def test_a_base_with_nan_is_refused_by_name(tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = float("nan")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'model.layers.1.mlp.up_proj.weight' holds NaN or infinity"):
        load_model(base)


def test_no_checkpoint_of_nan_is_written(tmp_path):
    from skillgraft.errors import TrainingError

    model = load_model(tiny_checkpoint(tmp_path / "base"))
    with torch.no_grad():
        model.model.norm.weight[0] = torch.inf
    assert first_not_finite(model) == "model.norm.weight"
    with pytest.raises(TrainingError, match="training diverged: the trained weights hold NaN or infinity"):
        save_checkpoint(model, tmp_path / "out", tiny_tokenizer())
    assert not (tmp_path / "out").exists()


def weights_of_another_config(**config):
    return lambda base: edit_json(base / "config.json", **config)


CONTRADICTIONS = {
    "a layer more than is stored": ({"num_hidden_layers": 3}, r"'model.layers.2.* is not stored .* \(9 such\)"),
    "a layer less than is stored": (
        {"num_hidden_layers": 1},
        r"'model.layers.1.* of a layer that config",
    ),
    "another width": ({"intermediate_size": 96}, r"has shape \[32, 64\], config.json makes it \[32, 96\]"),
    "other key heads": ({"num_key_value_heads": 4}, r"k_proj.weight' has shape \[16, 32\], .* \[32, 32\]"),
    "biases that are not stored": ({"attention_bias": True}, r"bias' is not stored and would be filled with random"),
}


@pytest.mark.parametrize(("config", "says"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_weights_and_config_of_different_models(tmp_path, config, says):
    """Loading would fill what is not stored with random values, and drop a layer, without a word."""
    base = base_with(tmp_path / "base", config=config)
    with pytest.raises(CheckpointError, match=says):
        check_checkpoint(base)
    with pytest.raises(CheckpointError, match=says):
        planned(recipe_on(tmp_path, scores={"models": ["base"]}))


@pytest.mark.parametrize("config", [families.gemma3, families.mixtral, families.qwen3_moe, families.deepseek_v3])
def test_weights_of_other_families_fit_their_config(tmp_path, config):
    check_checkpoint(families.checkpoint(tmp_path / "base", config()))


def test_one_of_two_tied_matrices_is_enough(tmp_path):
    base = base_with(tmp_path / "base")
    check_checkpoint(base)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    check_checkpoint(base)
