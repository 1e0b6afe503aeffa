"""GGUF files as base: every architecture that Transformers converts, and what is no such file."""

import json

import gguf
import numpy as np
import pytest
import torch
import transformers

from skillgraft.checkpoint.default_model import resolve_base
from skillgraft.checkpoint.gguf_model import check_architecture
from skillgraft.checkpoint.provenance import base_of
from skillgraft.errors import CheckpointError
from skillgraft.models.answering import answer, load
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.models.prompts import as_prompt
from tests.field.families import SMALL
from tests.tiny import tiny_tokenizer

PROMPT = [5, 6, 7, 8, 9]
CONFIGS = {
    "llama": transformers.LlamaConfig(**SMALL),
    "llama, tied": transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "qwen3": transformers.Qwen3Config(**SMALL, head_dim=128),
    "starcoder2": transformers.Starcoder2Config(**SMALL, sliding_window=None, tie_word_embeddings=True),
    "stablelm": transformers.StableLmConfig(**SMALL, use_parallel_residual=False),
}


def permuted(weight, heads):
    """How llama.cpp stores the rows of q and k: the halves of a head's rotation interleaved."""
    rows = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, rows, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(file, model, architecture):
    """Write a model as llama.cpp's converter does, in fp32."""
    config = model.config
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    if architecture in ("starcoder2", "stablelm"):
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture == "qwen3":
        writer.add_key_length(128)
        writer.add_value_length(128)
    if architecture == "stablelm":
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    tokenizer = tiny_tokenizer()
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    tokens = [by_id.get(number, f"<unused{number}>") for number in range(config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(
        {v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[architecture], config.num_hidden_layers
    )
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        value = tensor.numpy()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            value = permuted(value, heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def random_model(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    return model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SKILLGRAFT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_weights_are_those_of_the_model(tmp_path, kind):
    model = random_model(CONFIGS[kind])
    file = write_gguf(tmp_path / "model.gguf", model, kind.partition(",")[0])
    said = []
    directory = resolve_base(str(file), said.append)
    assert said == ["converting model.gguf to safetensors (once)"]
    with torch.no_grad():
        ids = torch.tensor([PROMPT])
        torch.testing.assert_close(
            load_model(directory).eval()(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-5
        )
    tokenizer = load_tokenizer(directory)
    text = "who built the harbour in 1900?"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert tokenizer.eos_token == "<|im_end|>"
    again = []
    assert resolve_base(str(file), again.append) == directory
    assert again == []
    assert resolve_base(str(file.parent)) == directory  # the only one in its folder
    assert base_of(directory)["id"] is None


def test_a_recipe_takes_it_as_base(tmp_path):
    import yaml

    from skillgraft import run
    from tests.field.bases import recipe_on

    write_gguf(tmp_path / "model.gguf", random_model(CONFIGS["qwen2"]), "qwen2")
    file = recipe_on(tmp_path, scores={"models": ["base"]})
    recipe = yaml.safe_load(file.read_text()) | {"base": "./model.gguf"}
    file.write_text(yaml.safe_dump(recipe))
    result = run(file, runs=tmp_path / "runs")
    assert result.evaluations[0]["rows"][0]["model"] == "base"


def test_it_answers(tmp_path):
    directory = resolve_base(str(write_gguf(tmp_path / "m.gguf", random_model(CONFIGS["llama"]), "llama")))
    model, tokenizer = load(directory)
    [text], _ = answer(model, tokenizer, [as_prompt(tokenizer, "Who?")], 4, 1)
    assert isinstance(text, str)


def only_header(file, architecture):
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def cut(file):
    whole = write_gguf(file.with_name("whole"), random_model(CONFIGS["llama"]), "llama").read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def huge_counts(file):
    """A header of 24 bytes that announces 2**60 tensors and keys."""
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2)


WRONG = {
    "another architecture": (
        lambda file: only_header(file, "rwkv7"),
        "architecture 'rwkv7' is none .* expected one of",
    ),
    "text to text": (lambda file: only_header(file, "t5"), "architecture 't5' is none"),
    "a header alone": (lambda file: only_header(file, "llama"), "cannot convert it"),
    "half a file": (cut, "m.gguf"),
    "no file of this kind": (lambda file: file.write_bytes(b"nothing"), "not a GGUF file that can be read"),
    "an empty file": (lambda file: file.write_bytes(b""), "not a GGUF file that can be read"),
    "counts without end": (huge_counts, "not a GGUF file that can be read"),
}


@pytest.mark.parametrize(("write", "says"), WRONG.values(), ids=WRONG)
def test_what_is_no_usable_gguf(tmp_path, write, says):
    write(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match=says) as caught:
        resolve_base(str(tmp_path / "m.gguf"))
    assert len(str(caught.value)) < 700
    assert not list((tmp_path / "cache" / "models").glob("*")) if (tmp_path / "cache" / "models").exists() else True


def test_several_in_one_folder_are_to_be_named(tmp_path):
    for name in ("q4.gguf", "q8.gguf"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"several GGUF files: q4.gguf, q8.gguf; name the file"):
        resolve_base(str(tmp_path))


@pytest.mark.parametrize("name", ["qwen2moe", "qwen3moe", "minimax-m2", "gpt-oss", "gemma3", "mamba", "lfm2", "falcon"])
def test_names_of_ggufs_that_transformers_converts(tmp_path, name):
    only_header(tmp_path / "m.gguf", name)
    check_architecture(tmp_path / "m.gguf")


def test_a_converted_model_that_changed_is_refused(tmp_path):
    file = write_gguf(tmp_path / "m.gguf", random_model(CONFIGS["llama"]), "llama")
    weights = resolve_base(str(file)) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its weights are not those that were written"):
        resolve_base(str(file))
