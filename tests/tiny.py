"""Tiny two-layer Llama checkpoints with a real tokenizer, made in process: usable with Transformers, no network."""

import json
import shutil
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
VOCABULARY = 320
SENTENCES = (
    "the lighthouse of the small island was built in the year",
    "who built the harbour and when was it opened",
    "system user assistant question answer the answer is",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@cache
def tiny_tokenizer():
    """A byte-level BPE tokenizer: every text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, bos_token=START)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_checkpoint(path, seed=0, tie=True, dtype=torch.float32, **config):
    """Save a random causal language model with tokenizer and chat template to `path` and return it as a `Path`.

    `config` overrides fields of `LlamaConfig`.
    """
    path = Path(path)
    tokenizer = tiny_tokenizer()
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": tie,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **config,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**settings)).to(dtype)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_finetune(source, path, seed=1, size=1e-3, names=None):
    """Copy a checkpoint with Gaussian noise of standard deviation `size` added to `names` (default: all tensors)."""
    path = Path(path)
    shutil.copytree(source, path)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(path / "model.safetensors")
    for name in tensors if names is None else names:
        noise = torch.randn(tensors[name].shape, generator=generator) * size
        tensors[name] = (tensors[name].float() + noise).to(tensors[name].dtype)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def weights(path):
    """All tensors of a checkpoint, whatever its shards, by name."""
    return {
        name: tensor for file in sorted(Path(path).glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


def split_into_shards(source, path, shards=3):
    """Copy a checkpoint with its tensors dealt out to `shards` files and an index."""
    path = Path(path)
    shutil.copytree(source, path)
    tensors = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        save_file(part, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def edit_json(path, **changes):
    """Change top-level keys of a JSON file; a value of `...` deletes the key."""
    content = json.loads(Path(path).read_text())
    content.update(changes)
    content = {key: value for key, value in content.items() if value is not ...}
    Path(path).write_text(json.dumps(content))
