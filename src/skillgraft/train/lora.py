"""LoRA settings passed through to PEFT, and the trained weights written so that the next stage can use them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
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
    for key in ("use_dora", "modules_to_save", "lora_bias", "target_parameters"):
        if given.get(key):
            raise RecipeError(f"lora: {key} is not supported: the update would be no product of two factors")
    if given.get("init_lora_weights", True) not in (True, "gaussian"):
        raise RecipeError("lora: init_lora_weights must leave the start as it is: true or gaussian")
    if not isinstance(given.get("r", 1), int) or given.get("r", 1) < 1:
        raise RecipeError(f"lora: r is {given['r']!r}, expected a rank of at least 1")
    try:
        return LoraConfig(task_type="CAUSAL_LM", **{**DEFAULTS, **given})
    except (TypeError, ValueError) as error:
        raise RecipeError(f"lora: LoraConfig refuses these arguments: {error}") from error


@contextmanager
def merged(model: PeftModel) -> Iterator[None]:
    """Fold the LoRA factors into the frozen weights while rollouts are made, and put the frozen weights back after.

    A token then costs one product a layer instead of three. The policy that samples is round(W + s·B·A) in the frozen
    weights' dtype, as in the checkpoint that is injected later; the policy that is trained keeps the factors apart.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    frozen = [weight.data for weight in weights]
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            weight.data = (weight.float() + layer.get_delta_weight("default").float()).to(weight.dtype)
    try:
        with model.disable_adapter():
            yield
    finally:
        for weight, data in zip(weights, frozen, strict=True):
            weight.data = data


def roll_out_merged(model: PeftModel) -> None:
    """Make `model.generate` run on merged weights."""
    generate = model.generate

    def generate_merged(*args: Any, **kwargs: Any) -> Any:
        with merged(model):
            return generate(*args, **kwargs)

    model.generate = generate_merged


def load_merged(start: Path, adapter: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Return the checkpoint `start` in `dtype` with the factors in `adapter` merged into it."""
    return PeftModel.from_pretrained(load_model(start, dtype), str(adapter)).merge_and_unload()


def save_trained(
    model: PreTrainedModel | PeftModel, start: Path, out: Path, tokenizer: PreTrainedTokenizerBase, lora: bool
) -> None:
    """Write trained weights and tokenizer into `out`; LoRA is merged in fp32 over `start`, its factors kept beside."""
    if lora:
        model.save_pretrained(str(out / ADAPTER))
        model = load_merged(start, out / ADAPTER, torch.float32)
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
