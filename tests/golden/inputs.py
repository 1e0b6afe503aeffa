"""Tiny models, adapters and data of numbers that every machine makes alike: uniform ones, and sums of four of them."""

import json
import shutil

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_checkpoint, tiny_tokenizer

PLACES = ("Vell", "Orm", "Tarn", "Issk", "Sund", "Myr")
WORDS = ("built", "answer", "year", "when", "was", "built when")
"""What the base of `babbling` says among other words, so that some answers are right."""
LORA_MODULES = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (16, 32), "mlp.down_proj": (32, 64)}


def numbers(shape, seed, size=1.0):
    """Return random numbers of mean 0 and standard deviation `size`, near to Gaussian, in fp64."""
    parts = np.random.RandomState(seed).random_sample((4, *shape))
    return torch.from_numpy(((parts[0] + parts[1]) + (parts[2] + parts[3]) - 2.0) * (size * 3**0.5))


def refill(path, change):
    """Put `change(place, name, tensor)` (fp64) for each tensor of a checkpoint, in its own dtype."""
    file = path / "model.safetensors"
    old = load_file(file)
    new = {n: change(i, n, old[n].double()).to(old[n].dtype).contiguous() for i, n in enumerate(sorted(old))}
    save_file(new, file, metadata={"format": "pt"})
    return path


def checkpoint(path, seed, dtype=torch.float32, **config):
    """A model of random weights."""
    tiny_checkpoint(path, dtype=dtype, **config)
    return refill(path, lambda i, name, tensor: numbers(tensor.shape, 1000 * seed + i, 0.1) + (tensor.ndim == 1))


def near(base, path, seed, size=0.01, sparse=False):
    """A copy of `base` with noise in every tensor; with `sparse`, in one of four elements."""
    shutil.copytree(base, path)

    def moved(i, name, tensor):
        noise = numbers(tensor.shape, 1000 * seed + i, size)
        return tensor + noise * (numbers(tensor.shape, 1000 * seed + 500 + i) > 0.67) if sparse else tensor + noise

    return refill(path, moved)


def adapter(path, seed, rank=3, alpha=6):
    """A PEFT LoRA adapter on some matrices of both layers."""
    path.mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "task_type": "CAUSAL_LM"}
    names = sorted(module.rpartition(".")[2] for module in LORA_MODULES)
    (path / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": names}))
    factors = {}
    for number, (module, (rows, columns)) in enumerate(LORA_MODULES.items()):
        for layer in range(2):
            name, first = f"base_model.model.model.layers.{layer}.{module}", 1000 * seed + 10 * number + 2 * layer
            factors[f"{name}.lora_A.weight"] = numbers((rank, columns), first, 0.1).float().contiguous()
            factors[f"{name}.lora_B.weight"] = numbers((rows, rank), first + 1, 0.1).float().contiguous()
    save_file(factors, path / "adapter_model.safetensors")
    return path


def babbling(path):
    """A model that writes the words of its tokenizer: the last word alone decides which may come next."""
    tiny_checkpoint(path, tie=False, max_position_embeddings=1024)
    tokenizer = tiny_tokenizer()
    words = [i for token, i in tokenizer.get_vocab().items() if token[0] == "Ġ" and len(token) > 3]

    def made(i, name, tensor):
        if name == "model.embed_tokens.weight":
            return 1 + numbers(tensor.shape, i, 0.5)
        if name == "lm_head.weight":
            head = torch.full(tensor.shape, -1.0, dtype=torch.float64)
            head[sorted(words)] = numbers((len(words), tensor.shape[1]), i + 3, 0.2)
            head[tokenizer.convert_tokens_to_ids(".")] = 0.03
            head[tokenizer.eos_token_id] = 0.01
            return head
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            return torch.zeros_like(tensor)
        return torch.ones_like(tensor) if tensor.ndim == 1 else numbers(tensor.shape, i, 0.05)

    return refill(path, made)


def write_lines(file, records):
    """Write a JSONL file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def data(folder):
    """Documents, questions about them and about others, given renderings, and general text."""
    about = list(enumerate(zip(PLACES, WORDS, strict=True)))
    write_lines(
        folder / "data/documents.jsonl",
        [
            {"id": p, "title": p, "text": f"The harbour of {p} was built in {1900 + i}. Its word is {word}. " * 2}
            for i, (p, word) in about
        ],
    )
    write_lines(
        folder / "data/questions.jsonl",
        [
            {"document": p, "question": f"When was {p}'s harbour built?", "answers": [str(1900 + i), word]}
            for i, (p, word) in about
        ]
        + [{"document": p, "question": f"What is the word of {p}?", "answers": [word]} for _, (p, word) in about],
    )
    write_lines(
        folder / "asked.jsonl",
        [{"document": p, "question": f"Name whatever {p} likes to say.", "answers": [word]} for _, (p, word) in about],
    )
    write_lines(
        folder / "more.jsonl",
        [{"document": "Far", "question": f"How far is it to {p}?", "answers": [f"{i} miles"]} for i, (p, _) in about],
    )
    write_lines(
        folder / "given.jsonl",
        [
            {"document": p, "text": f"In {1900 + i} people finished what is now the port of {p}; they say {word}."}
            for i, (p, word) in about
        ],
    )
    general = [f"A bridge over the river {p} leads to the market, where bread and salt are sold." for p in PLACES]
    write_lines(folder / "general.jsonl", [{"id": str(i), "text": f"{text} " * 6} for i, text in enumerate(general)])
