"""Trainer arguments: a recipe's `trainer:` mapping passed through to Transformers' and TRL's config classes."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.models.loading import quiet
from skillgraft.models.precision import bf16_pays, device
from skillgraft.support.config_values import number_hint
from skillgraft.train.data_parallel import processes
from skillgraft.train.trainer_trial import try_arguments
from skillgraft.train.trainer_values import REFUSED, check_trainer_values

RESERVED = {
    *("output_dir", "seed", "use_cpu", "bf16", "fp16", "reward_weights", "push_to_hub", "logging_nan_inf_filter"),
    *("save_strategy", "save_steps", "save_only_model", "resume_from_checkpoint"),
}
"""Trainer arguments that the recipe decides elsewhere (seed) or that resuming rests on."""


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Tell glibc's allocator to keep the memory of freed tensors instead of giving it back to the system.

    Training frees and asks for the same large blocks every step, and each fresh page costs a fault and a zeroing: a
    full fine-tuning step of a 135 M model on 2 cores takes 1.5 s instead of 1.85 s. Elsewhere than on glibc, nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def trainer_arguments(
    config: type[TrainingArguments], defaults: Mapping[str, Any], given: Mapping[str, Any], workdir: Path, seed: int
) -> TrainingArguments:
    """Return `config` with our `defaults`, over them the recipe's `trainer:` mapping.

    Of processes that train together each gets its part of the batch (see `train.data_parallel`).

    Raises:
        RecipeError: a key that the trainer does not have, one that is `RESERVED`, or a value it refuses.
    """
    quiet()
    keep_freed_memory()
    check_trainer_keys(config, given)
    check_trainer_values(config, given)
    merged = {
        **{"logging_steps": 1, "report_to": "none", "disable_tqdm": True, "gradient_checkpointing": False},
        **defaults,
        **{key: value for key, value in given.items() if key not in REFUSED},  # what is left of those says nothing
        **{"output_dir": str(workdir), "seed": seed, "save_strategy": "no"},
        "logging_nan_inf_filter": False,  # a loss that is not finite is never replaced by another number
        **{"use_cpu": device().type == "cpu", "bf16": bf16_pays(), "fp16": False},
    }
    merged["report_to"] = merged["report_to"] or "none"  # null would be the name of a tracker
    for beta in ("adam_beta1", "adam_beta2"):  # Torch takes no whole number
        if beta in merged:
            merged[beta] = float(merged[beta])
    if (count := processes()) > 1:
        merged["per_device_train_batch_size"] //= count
        merged = {"ddp_find_unused_parameters": False, **merged}
    try:
        arguments = config(**merged)
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(f"trainer: {config.__name__} refuses these arguments: {reason[:300]}") from error
    arguments._n_gpu = min(arguments.n_gpu, 1)  # of several GPUs in sight the trainers would take all, in one process
    if arguments.per_device_train_batch_size < 1:
        raise RecipeError(
            f"trainer: per_device_train_batch_size is {arguments.per_device_train_batch_size}, expected at least 1"
        )
    if arguments.max_steps <= 0 and arguments.num_train_epochs <= 0:
        raise RecipeError(
            f"trainer: num_train_epochs is {arguments.num_train_epochs}, expected more than 0: nothing is learnt"
        )
    try_arguments(arguments)
    return arguments


def check_at_least(least: int, made: TrainingArguments, name: str) -> None:
    """Raise `RecipeError` for a number of tokens below `least`; of `max_length`, null is no limit."""
    value = getattr(made, name)
    if (value is None and name != "max_length") or (value is not None and value < least):
        raise RecipeError(f"trainer: {name} is {value!r}, expected at least {least} tokens")


def check_trainer_keys(config: type[TrainingArguments], given: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for a key of `trainer:` that `config` does not know or that may not be set there."""
    known = {field.name for field in dataclasses.fields(config) if field.init}
    for key, value in given.items():
        default = getattr(config, key, None)
        if isinstance(value, str) and isinstance(default, int | float) and not isinstance(default, bool):
            raise RecipeError(f"trainer: {key} is the text '{value}', expected a number{number_hint(value)}")
        if key in RESERVED:
            raise RecipeError(f"trainer: '{key}' cannot be set there; the recipe and the machine decide it")
        if key not in known:
            raise RecipeError(f"trainer: '{key}' is not an argument of {config.__name__}{_closest(key, known)}")


def _closest(key: str, known: set[str]) -> str:
    return did_you_mean(key, known).partition(" available:")[0].rstrip(";")
