"""A tiny checkpoint that writes words: a chain in which the last word alone decides the next, sampled or greedy."""

import torch
from safetensors.torch import load_file, save_file

from tests.tiny import tiny_checkpoint, tiny_tokenizer


def babbling_checkpoint(path, seed=0):
    """Save it to `path`. Its output holds nothing but words of the tokenizer's own sentences, and ends by chance."""
    path = tiny_checkpoint(path, seed=seed, tie=False, max_position_embeddings=1024)
    tensors = load_file(path / "model.safetensors")
    tokenizer = tiny_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    embedding = tensors["model.embed_tokens.weight"]
    words = sorted(i for token, i in tokenizer.get_vocab().items() if token[0] == "Ġ" and len(token) > 3)
    noise = torch.randn(embedding.shape, generator=generator)
    direction = torch.ones(embedding.shape[1])
    tensors["model.embed_tokens.weight"] = direction + 0.5 * noise
    head = -direction.repeat(embedding.shape[0], 1)
    head[words] = 0.2 * torch.randn((len(words), embedding.shape[1]), generator=generator)
    head[tokenizer.convert_tokens_to_ids(".")] = 0.07 * direction
    head[tokenizer.eos_token_id] = 0.01 * direction
    tensors["lm_head.weight"] = head
    for name in tensors:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path
