"""What both training stages share: quiet and offline-safe trainers, arguments passed through, weights saved whole."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.train.precision import bf16_pays, device

RESERVED = {"output_dir", "use_cpu", "bf16", "fp16", "seed", "save_strategy", "save_steps", "resume_from_checkpoint"}
"""Trainer arguments that the recipe decides elsewhere (seed) or that resuming rests on."""


def quiet() -> None:
    """Keep the libraries' own bars and advice off the terminal: the stage list shows progress."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("trl", "accelerate", "datasets", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets

    datasets.disable_progress_bars()


def trainer_arguments(
    config: type[TrainingArguments], defaults: Mapping[str, Any], given: Mapping[str, Any], workdir: Path, seed: int
) -> TrainingArguments:
    """Return `config` with our `defaults`, over them the recipe's `trainer:` mapping.

    Raises:
        RecipeError: a key that the trainer does not have, one that is `RESERVED`, or a value it refuses.
    """
    quiet()
    check_trainer_keys(config, given)
    merged = {
        **{"logging_steps": 1, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False},
        **defaults,
        **given,
        **{"output_dir": str(workdir), "seed": seed, "save_strategy": "no"},
        **{"use_cpu": device().type == "cpu", "bf16": bf16_pays(), "fp16": False},
    }
    try:
        return config(**merged)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"trainer: {config.__name__} refuses these arguments: {error}") from error


def check_trainer_keys(config: type[TrainingArguments], given: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for a key of `trainer:` that `config` does not know or that may not be set there."""
    known = {field.name for field in dataclasses.fields(config) if field.init}
    for key in given:
        if key in RESERVED:
            raise RecipeError(f"trainer: '{key}' cannot be set there; the recipe and the machine decide it")
        if key not in known:
            raise RecipeError(f"trainer: '{key}' is not an argument of {config.__name__}{_closest(key, known)}")


def _closest(key: str, known: set[str]) -> str:
    return did_you_mean(key, known).partition(" available:")[0].rstrip(";")


def load_model(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return the causal language model at `directory` in `dtype`, on the CPU."""
    quiet()
    return AutoModelForCausalLM.from_pretrained(str(directory), dtype=dtype, local_files_only=True)


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer at `directory`, with a padding token."""
    quiet()
    tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def count_parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
