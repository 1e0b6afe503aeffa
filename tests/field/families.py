"""Tiny random checkpoints of architectures that are stored, tied, stacked or packed in their own way."""

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    DeepseekV3Config,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)

from tests.tiny import tiny_tokenizer

SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
TOKENS = {"image_token_index": 316, "boi_token_index": 317, "eoi_token_index": 318}


def gemma3():
    return Gemma3Config(
        text_config={**SMALL, "head_dim": 8, "sliding_window": 64},
        vision_config=VISION,
        mm_tokens_per_image=4,
        **TOKENS,
        eos_token_id=2,
    )


def llava():
    return LlavaConfig(
        text_config=LlamaConfig(**SMALL), vision_config=CLIPVisionConfig(**VISION), image_token_index=316
    )


def mixtral():
    return MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)


def qwen3_moe():
    return Qwen3MoeConfig(**SMALL, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)


def deepseek_v3():
    return DeepseekV3Config(
        **{**SMALL, "num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=8,
        v_head_dim=6,
    )


def checkpoint(path, config, seed=0, dtype=torch.float32):
    """Save a random model of a config with the tiny tokenizer; return the path."""
    torch.manual_seed(seed)
    auto = AutoModelForCausalLM if type(config) in AutoModelForCausalLM._model_mapping else AutoModelForImageTextToText
    model = auto.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.05
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path
