"""LoRA settings passed through to PEFT, and the trained weights written so that the next stage can use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.train.common import load_model

DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "bias": "none"}
ADAPTER = "adapter"
"""Folder of a trained checkpoint that holds its LoRA factors, from which `extract` takes the skill exactly."""


def lora_config(given: Mapping[str, Any]) -> LoraConfig:
    """Return PEFT's `LoraConfig` from a recipe's `lora:` mapping over our defaults (all linear layers, rank 8).

    Raises:
        RecipeError: a key or value that PEFT refuses.
    """
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    for key in given:
        if key not in known:
            raise RecipeError(f"lora: '{key}' is not an argument of LoraConfig{did_you_mean(key, known)}")
    try:
        return LoraConfig(task_type="CAUSAL_LM", **{**DEFAULTS, **given})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"lora: LoraConfig refuses these arguments: {error}") from error


def save_trained(
    model: PreTrainedModel | PeftModel, start: Path, out: Path, tokenizer: PreTrainedTokenizerBase, lora: bool
) -> None:
    """Write trained weights and tokenizer into `out`; LoRA is merged in fp32 over `start`, its factors kept beside."""
    if lora:
        model.save_pretrained(str(out / ADAPTER))
        model = PeftModel.from_pretrained(load_model(start, torch.float32), str(out / ADAPTER)).merge_and_unload()
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
