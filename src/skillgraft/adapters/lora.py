"""LoRA: arguments passed through to PEFT, merged rollouts, and the trained factors kept beside the weights."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from skillgraft.adapters.kind import Adapter
from skillgraft.adapters.peft_file import REFUSED
from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.models.loading import load_model
from skillgraft.models.saving import save_checkpoint
from skillgraft.support.config_values import check_types, number_hint

ALL = "all-linear"
"""PEFT's name for all linear layers but the output head."""
DEFAULTS: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ALL, "bias": "none"}
ADAPTER = "adapter"
"""Folder of a trained checkpoint that holds its LoRA factors, from which `extract` takes the skill exactly."""


def lora_config(settings: Mapping[str, Any]) -> LoraConfig:
    """Return PEFT's `LoraConfig` from a recipe's `adapt:` arguments over our defaults (all linear layers, rank 8).

    Raises:
        RecipeError: a key or value that PEFT refuses.
    """
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    for key in settings:
        if key not in known:
            raise RecipeError(f"adapt: '{key}' is not an argument of LoraConfig{did_you_mean(str(key), known)}")
    for key, reason in REFUSED.items():
        if settings.get(key):
            raise RecipeError(
                f"adapt: {key} is not supported: {reason}; the update must be the product of two factors of one matrix"
            )
    if settings.get("init_lora_weights", True) not in (True, "gaussian"):
        raise RecipeError("adapt: init_lora_weights must leave the start as it is: true or gaussian")
    if not isinstance(settings.get("r", 1), int) or settings.get("r", 1) < 1:
        raise RecipeError(f"adapt: r is {settings['r']!r}, expected a rank of at least 1")
    targets = settings.get("target_modules") or ALL
    if not isinstance(targets, str) and not (isinstance(targets, list) and all(isinstance(t, str) for t in targets)):
        raise RecipeError(f"adapt: target_modules is {targets!r}, expected names such as [q_proj, v_proj]")
    _check_values(settings)
    try:
        return LoraConfig(task_type="CAUSAL_LM", **{**DEFAULTS, **settings})
    except Exception as error:
        raise RecipeError(f"adapt: LoraConfig refuses these arguments: {error}") from error


def _check_values(settings: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for a value of another type than PEFT states, and a number out of its range."""
    for key, value in settings.items():
        default = getattr(LoraConfig, key, None)
        if isinstance(value, str) and isinstance(default, int | float) and not isinstance(default, bool):
            raise RecipeError(f"adapt: {key} is the text '{value}', expected a number{number_hint(value)}")
    check_types("adapt", LoraConfig, settings, {"lora_alpha": float})
    alpha, dropout = settings.get("lora_alpha", 1), settings.get("lora_dropout", 0.0)
    if not (math.isfinite(alpha) and alpha > 0):
        raise RecipeError(f"adapt: lora_alpha is {alpha!r}, expected more than 0: it is a factor of the update")
    for pattern, value in {**(settings.get("rank_pattern") or {}), **(settings.get("alpha_pattern") or {})}.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise RecipeError(f"adapt: the pattern '{pattern}' has {value!r}, expected a number above 0")
    if not 0 <= dropout < 1:
        raise RecipeError(f"adapt: lora_dropout is {dropout!r}, expected from 0 to below 1")


def empty_model(directory: Path) -> PreTrainedModel | None:
    """Return the model at `directory` without its weights, None where Transformers does not know the architecture."""
    try:
        return _without_weights(AutoConfig.from_pretrained(str(directory), local_files_only=True))
    except (ValueError, OSError):  # loading the model says why
        return None


def _without_weights(config: PretrainedConfig) -> PreTrainedModel:
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return AutoModelForCausalLM.from_config(deepcopy(config))


def check_fit(model: PreTrainedModel, config: LoraConfig) -> None:
    """Raise `RecipeError` for a pattern of `target_modules` that no module of `model` has, and what PEFT refuses.

    PEFT itself passes over a pattern without a module where another one has some. `model` gets the adapter: give one
    without weights. The random state stays as it is.
    """
    weights = {name.rpartition(".")[2]: name for name, module in model.named_modules() if _is_matrix(module)}
    targets = config.target_modules or []
    for target in [targets] if isinstance(targets, str) else sorted(targets):
        if target != ALL and not _matches(target, isinstance(targets, str), model):
            hint = did_you_mean(target, weights)
            if isinstance(targets, str):
                hint = (
                    f", as a regular expression of whole names such as {next(iter(weights.values()))}; or give a list"
                )
            raise RecipeError(f"adapt: target_modules: '{target}' matches no module{hint}")
    _check_rank(model, config)
    shared = _shared_weights(model)
    try:
        with torch.random.fork_rng(devices=[]):
            adapted = get_peft_model(model, deepcopy(config))  # which it fills in
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(f"adapt: PEFT refuses this: {reason}; the model's matrices: {', '.join(weights)}") from error

    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer) and (places := shared.get(id(frozen_weight(layer)))):
            raise RecipeError(
                f"adapt: target_modules: '{name.rpartition('.')[2]}' is one matrix with {' and '.join(places)} (tied "
                "weights): the factors would act on one side while training and on both when merged; leave it out of "
                "target_modules"
            )
    if isinstance(adapted.get_base_model().get_output_embeddings(), LoraLayer):
        raise RecipeError(
            "adapt: target_modules: the output head is named, whose factors would never be trained, as TRL computes "
            "log-probabilities from the head's own weight; leave it out of target_modules"
        )


def _check_rank(model: PreTrainedModel, config: LoraConfig) -> None:
    """Raise `RecipeError` for a rank beyond every side of the model's matrices, whose factors could fill memory."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    matrices = [module.weight for module in model.modules() if _is_matrix(module) and module not in ends]
    most = max((max(matrix.shape) for matrix in matrices), default=1)
    if (largest := max([config.r, *(config.rank_pattern or {}).values()])) > most:
        raise RecipeError(
            f"adapt: the rank {largest} is more than any matrix of the model has rows or columns ({most}); lower r"
        )


def check_stored_matrices(directory: Path, adapter: Adapter) -> None:
    """Raise `RecipeError` where an adapter on the checkpoint would adapt stacked experts, which it stores one by one.

    Such an adapter can be trained and merged, but is no operand: its factors are of no stored tensor.
    """
    if (model := empty_model(directory)) is None:
        return
    adapter.check(model)
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper):
            raise RecipeError(
                f"adapt: '{name.removeprefix('base_model.model.')}' stacks experts that the checkpoint stores one by "
                "one, so that what is learnt of them cannot be added to a model in memory; name other modules, such as "
                "target_modules: [q_proj, k_proj, v_proj, o_proj]"
            )


def _shared_weights(model: PreTrainedModel) -> dict[int, list[str]]:
    """Return the names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {key: places for key, places in names.items() if len(places) > 1}


def frozen_weight(layer: LoraLayer) -> torch.nn.Parameter:
    """Return the frozen weight that a LoRA layer adapts: a module's matrix, or a parameter of stacked experts."""
    return layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight


def _matches(target: str, expression: bool, model: PreTrainedModel) -> bool:
    alone = LoraConfig(target_modules=target if expression else [target])
    try:
        return any(check_target_module_exists(alone, name) for name, _ in model.named_modules() if name)
    except re.error as error:
        raise RecipeError(f"adapt: target_modules: '{target}' is not a regular expression: {error}") from error


def _is_matrix(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2


@contextmanager
def merged(model: PeftModel) -> Iterator[None]:
    """Fold the LoRA factors into the frozen weights while rollouts are made, and put the frozen weights back after.

    A token then costs one product a layer instead of three. The policy that samples is round(W + s·B·A) in the frozen
    weights' dtype, as in the checkpoint that is injected later; the policy that is trained keeps the factors apart.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    weights = [frozen_weight(layer) for layer in layers]
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


class LoraAdapter:
    """LoRA as trainers use it (`adapters.kind.Adapter`): W + s·B·A on matrices, trained in PEFT."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._config = lora_config(arguments)

    def check(self, model: PreTrainedModel) -> None:
        """Raise `RecipeError` for modules that `model`, which has no weights, does not have."""
        check_fit(model, self._config)

    def apply(self, model: PreTrainedModel) -> LoraConfig:
        """Return PEFT's config, after `check_fit` on a copy of `model` without weights."""
        check_fit(_without_weights(model.config), self._config)
        return deepcopy(self._config)

    def merged(self, model: PeftModel) -> AbstractContextManager[None]:
        """Fold the factors into the frozen weights meanwhile (`merged`)."""
        return merged(model)

    def restore(self, model: PeftModel, folder: Path) -> None:
        """Load saved factors into a model with the same adapter."""
        set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))

    def load_merged(self, start: Path, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
        """Return the checkpoint `start` in `dtype` with the factors in `folder` merged into it."""
        return PeftModel.from_pretrained(load_model(start, dtype), str(folder)).merge_and_unload()

    def save(self, model: PeftModel, start: Path, out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the factors into `out/adapter`, and weights merged in fp32 over `start`, with the tokenizer."""
        model.save_pretrained(str(out / ADAPTER))
        save_checkpoint(self.load_merged(start, out / ADAPTER, torch.float32), out, tokenizer)


def roll_out_merged(model: PeftModel, adapter: Adapter) -> None:
    """Make `model.generate` run on merged weights."""
    generate = model.generate

    def generate_merged(*args: Any, **kwargs: Any) -> Any:
        with adapter.merged(model):
            return generate(*args, **kwargs)

    model.generate = generate_merged


def save_trained(
    model: PreTrainedModel | PeftModel,
    start: Path,
    out: Path,
    tokenizer: PreTrainedTokenizerBase,
    adapter: Adapter | None,
) -> None:
    """Write a trained model as a checkpoint into `out`, with its adapter beside it if it has one."""
    if adapter is None:
        save_checkpoint(model, out, tokenizer)
    else:
        adapter.save(model, start, out, tokenizer)
