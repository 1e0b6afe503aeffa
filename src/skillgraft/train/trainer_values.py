"""Trainer values: what of a `trainer:` mapping makes no sense here, and the range of each number, before anything runs.

The libraries accept most values when their configuration is made and fail, or train nonsense, much later.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from accelerate.utils import DynamoBackend
from transformers import GenerationConfig, IntervalStrategy, SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.models.precision import device
from skillgraft.support.config_values import check_types


class Range(NamedTuple):
    """What a number may be: from `least` (or `above` it) to `most`; `inf` says that it may be infinite."""

    least: float
    most: float = math.inf
    above: bool = False
    inf: bool = False

    def holds(self, value: float) -> bool:
        """Return whether `value` lies within."""
        low = value > self.least if self.above else value >= self.least
        return low and value <= self.most and (self.inf or math.isfinite(value))

    def __str__(self) -> str:
        if self.most < math.inf:
            return f"more than {self.least:g} and at most {self.most:g}" if self.above else self._between()
        return f"{'more than' if self.above else 'at least'} {self.least:g}"

    def _between(self) -> str:
        return f"from {self.least:g} to {self.most:g}"


_COUNT, _POSITIVE, _NOT_NEGATIVE, _SHARE = Range(1), Range(0, above=True), Range(0), Range(0, 1)

RANGES: dict[str, Range] = {
    **dict.fromkeys(("per_device_train_batch_size", "gradient_accumulation_steps", "torch_empty_cache_steps"), _COUNT),
    **dict.fromkeys(("num_iterations", "steps_per_generation", "generation_batch_size", "dataset_num_proc"), _COUNT),
    **dict.fromkeys(("pad_to_multiple_of", "ref_model_sync_steps", "dataloader_prefetch_factor"), _COUNT),
    **dict.fromkeys(("num_completions_to_print", "ddp_bucket_cap_mb", "ddp_timeout", "max_steps"), _COUNT),
    **dict.fromkeys(("learning_rate", "num_train_epochs", "adam_epsilon", "logging_steps", "temperature"), _POSITIVE),
    **dict.fromkeys(("repetition_penalty", "epsilon", "epsilon_high", "delta", "neftune_noise_alpha"), _POSITIVE),
    **dict.fromkeys(("sapo_temperature_neg", "sapo_temperature_pos"), _POSITIVE),
    **dict.fromkeys(("warmup_steps", "weight_decay", "beta", "top_k", "router_aux_loss_coef"), _NOT_NEGATIVE),
    **dict.fromkeys(("dataloader_num_workers", "seed", "data_seed", "entropy_target"), _NOT_NEGATIVE),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), _SHARE),
    **dict.fromkeys(("min_p", "top_entropy_quantile", "ref_model_mixup_alpha"), _SHARE),
    "top_p": Range(0, 1, above=True),
    "num_generations": Range(2),
    "max_grad_norm": Range(0, inf=True),
}
"""Argument -> its range, where it is a number; every other number must at least be finite."""

OFF = {"max_steps": -1}
"""Argument -> the value by which the library leaves it out."""

_EVALUATED = "the trainer has no questions to be scored on here: an eval stage scores the model"
_ROWS = "the stage makes the rows and says which of their tokens carry loss"
_TEMPLATE = "prompts are made with the model's own template: chat_template_kwargs of the stage gives it arguments"
_TOKENIZER = "the checkpoint's tokenizer decides it: set it in tokenizer_config.json"
_MODEL = "the stage loads the model, and runs no code that comes with it"
_PROCESSES = "training is spread by starting the run with a launcher (skillgraft docs several-gpus)"
_SHARED = "a run's results stay in its folder: skillgraft skill push shares a skill"
_RESUMED = "resuming rests on it"
_TEACHER = "the teacher is the stage's own start: teacher and teacher_rate of the stage say how it moves"

REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "do_eval", "do_predict"), _EVALUATED
    ),
    **dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), _EVALUATED),
    **dict.fromkeys(("prediction_loss_only", "include_for_metrics", "batch_eval_metrics"), _EVALUATED),
    **dict.fromkeys(("eval_accumulation_steps", "eval_do_concat_batches", "eval_use_gather_object"), _EVALUATED),
    **dict.fromkeys(("eval_packing", "num_generations_eval", "bf16_full_eval", "fp16_full_eval"), _EVALUATED),
    **dict.fromkeys(("assistant_only_loss", "completion_only_loss", "dataset_text_field", "dataset_kwargs"), _ROWS),
    **dict.fromkeys(("remove_unused_columns", "label_names", "length_column_name", "padding_free"), _ROWS),
    "chat_template_path": _TEMPLATE,
    "chat_template_kwargs": _TEMPLATE,
    "eos_token": _TOKENIZER,
    "pad_token": _TOKENIZER,
    "model_init_kwargs": _MODEL,
    "trust_remote_code": _MODEL,
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "accelerator_config"), _PROCESSES),
    **dict.fromkeys(("local_rank", "ddp_backend", "ds3_gather_for_generation"), _PROCESSES),
    **dict.fromkeys(("hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"), _SHARED),
    **dict.fromkeys(("hub_revision", "log_completions_hub_repo"), _SHARED),
    **dict.fromkeys(("save_total_limit", "save_on_each_node", "ignore_data_skip", "enable_jit_checkpoint"), _RESUMED),
    "restore_callback_states_from_checkpoint": _RESUMED,
    **dict.fromkeys(("teacher_model_name_or_path", "teacher_model_revision", "teacher_model_init_kwargs"), _TEACHER),
}
"""Argument -> why it may not be set to anything but its default."""

ON_A_GPU = {
    *("use_liger_kernel", "liger_kernel_config", "activation_offloading", "tf32", "use_vllm"),
    *("use_transformers_continuous_batching", "use_transformers_paged"),
}
"""Arguments that work on a GPU alone."""

PACKAGES = {"use_liger_kernel": "liger_kernel", "use_vllm": "vllm"}
"""Argument -> the package that it needs."""

CHOICES: dict[str, tuple[str, ...]] = {
    "optim": tuple(each.value for each in OptimizerNames),
    "lr_scheduler_type": tuple(each.value for each in SchedulerType),
    "logging_strategy": tuple(each.value for each in IntervalStrategy),
    "torch_compile_backend": tuple(each.lower() for each in DynamoBackend.list()),
    "torch_compile_mode": ("default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "scale_rewards": ("group", "batch", "none"),
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
    "include_num_input_tokens_seen": ("all", "non_padding", "no"),
    **dict.fromkeys(
        ("log_level", "log_level_replica"), ("passive", "debug", "info", "warning", "error", "critical", "detail")
    ),
    "dataloader_multiprocessing_context": ("fork", "spawn", "forkserver"),
}
LOSSES = {
    "SFTConfig": ("nll", "dft", "chunked_nll"),
    "GRPOConfig": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
}
"""Config class -> its values of `loss_type`."""

CHECKPOINTING_KEYS = ("use_reentrant", "preserve_rng_state", "determinism_check", "early_stop")
"""Keys of `gradient_checkpointing_kwargs`."""


def check_trainer_values(config: type[TrainingArguments], given: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for a value that the trainer cannot use here, with the reason and what to do."""
    fields = {field.name: field for field in dataclasses.fields(config)}
    for key, value in given.items():
        if _leaves_out(value, fields[key]):
            continue
        if key in REFUSED:
            raise RecipeError(f"trainer: {key} cannot be set: {REFUSED[key]}; leave it out")
        if key in ON_A_GPU and device().type == "cpu":
            raise RecipeError(f"trainer: {key} needs a GPU, and this machine has none; leave it out")
        if key in PACKAGES and importlib.util.find_spec(PACKAGES[key]) is None:
            raise RecipeError(f"trainer: {key} needs the package {PACKAGES[key]}: install it, or leave {key} out")
    check_types("trainer", config, given, {"scale_rewards": bool})
    for key, value in given.items():
        _check_number(key, value)
        if isinstance(value, str):
            _check_choice(key, value, fields[key].metadata.get("choices") or _choices(config, key))
    _check_mappings(given)


def _leaves_out(value: Any, field: dataclasses.Field[Any]) -> bool:
    """Return whether a value says no more than that the argument is not used."""
    is_default = type(value) is type(field.default) and value == field.default
    return is_default or value is None or value is False or value in ("", [], {})


def _check_number(key: str, value: Any) -> None:
    allowed = RANGES.get(key)
    if value is None and key == "num_generations":  # TRL declares it so, and divides by it
        raise RecipeError(f"trainer: {key} is {value!r}, expected {allowed}")
    if not isinstance(value, int | float) or isinstance(value, bool) or OFF.get(key) == value:
        return
    if allowed is not None and not allowed.holds(value):
        raise RecipeError(f"trainer: {key} is {value!r}, expected {allowed}")
    if allowed is None and not math.isfinite(value):
        raise RecipeError(f"trainer: {key} is {value!r}, expected a finite number")


def _choices(config: type[TrainingArguments], key: str) -> tuple[str, ...] | None:
    return LOSSES.get(config.__name__) if key == "loss_type" else CHOICES.get(key)


def _check_choice(key: str, value: str, choices: Any) -> None:
    if choices and value not in choices:
        raise RecipeError(f"trainer: {key} is '{value}'{did_you_mean(value, choices)}")


def _check_mappings(given: Mapping[str, Any]) -> None:
    """Raise for keys of the mappings that are handed on to generation and to checkpointing of activations."""
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        for key, value in (given.get(name) or {}).items():
            if key not in CHECKPOINTING_KEYS or not isinstance(value, bool):
                raise RecipeError(
                    f"trainer: {name} holds {key}: {value!r}, expected true or false for one of "
                    f"{', '.join(CHECKPOINTING_KEYS)}"
                )
    generation = dict(given.get("generation_kwargs") or {})
    known = GenerationConfig().to_dict().keys()
    for key in generation:
        if key not in known:
            raise RecipeError(f"trainer: generation_kwargs: '{key}' is not known{did_you_mean(str(key), known)}")
    if "cache_implementation" in given:
        generation["cache_implementation"] = given["cache_implementation"]
    try:
        GenerationConfig(**generation)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"trainer: generation_kwargs are refused by Transformers: {reason[:300]}") from error
