"""Load causal language models and tokenizers with Transformers, offline and without its own bars and advice.

Only what Transformers knows by itself is loaded: code that a checkpoint brings along is never run.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import GENERATION_CONFIG_NAME
from transformers.utils import logging as transformers_logging

from skillgraft.checkpoint.layout import ADAPTER_CONFIG_FILE, CONFIG_FILE, read_config
from skillgraft.checkpoint.safe_read import read_json_object
from skillgraft.errors import CheckpointError, SkillgraftError
from skillgraft.models.chat_template import keep_template_arguments
from skillgraft.models.saving import first_not_finite


def quiet() -> None:
    """Keep the libraries' own bars and advice off the terminal: the stage list shows progress."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("trl", "accelerate", "datasets", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import datasets

    datasets.disable_progress_bars()


def load_model(directory: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Return the causal language model at `directory` in `dtype`, on the CPU.

    Raises:
        CheckpointError: what `check_loadable` refuses, weights that Transformers refuses or that are not finite.
    """
    check_loadable(directory)
    model = _load(AutoModelForCausalLM.from_pretrained, directory, "model", dtype=dtype)
    if (name := first_not_finite(model)) is not None:
        raise CheckpointError(
            f"{directory}: tensor {name!r} holds NaN or infinity, expected finite values: training diverged or the "
            "file is damaged; take an earlier checkpoint"
        )
    # Generation hands the last position to the output head as a strided slice. Torch 2.13 multiplies that in bf16 on
    # the CPU without its fast kernel: 5.2 s instead of 0.02 s for 64 rows and 49,152 words.
    model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(), *inputs[1:]))
    return model


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer at `directory`, with a padding token.

    Raises `CheckpointError` where Transformers cannot load it without running code of the checkpoint's, and for one
    without an end-of-text token.
    """
    quiet()
    tokenizer = _load(AutoTokenizer.from_pretrained, directory, "tokenizer")
    if tokenizer.eos_token is None:
        raise CheckpointError(
            f"{directory}: the tokenizer has no end-of-text token, so that an answer could never end; expected "
            "eos_token in tokenizer_config.json: add the token that ends the model's answers"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    keep_template_arguments(tokenizer)
    return tokenizer


def check_loadable(directory: Path) -> None:
    """Raise `CheckpointError` for a checkpoint that cannot be trained or asked; reads its config alone.

    Refused are an adapter beside the weights, which Transformers would add to them, architectures that need code of
    their own or are newer than Transformers, and models that are no causal language models. All of them can be merged.
    """
    quiet()
    if (directory / ADAPTER_CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{directory} holds weights and {ADAPTER_CONFIG_FILE}: Transformers would load that adapter on top of "
            "them; expected one of them: move the adapter's files into a folder of their own, or merge it first"
        )
    config = _load(AutoConfig.from_pretrained, directory, "config")
    if not _is_causal(config):
        raise CheckpointError(
            f"{directory}: a {config.model_type} model is no causal language model that Transformers knows, so it can "
            "be neither trained nor asked here; expected one such as Llama, Qwen or Gemma (merging works for any)"
        )
    _check_end_tokens(directory, config)


def _is_causal(config: PreTrainedConfig) -> bool:
    """Return whether Transformers has a causal language model for a config; some of its classes see ahead."""
    known = type(config) in AutoModelForCausalLM._model_mapping
    sees_ahead = getattr(config, "is_decoder", True) is False and not config.model_type.startswith("gpt_neox")
    return known and not sees_ahead and not getattr(config, "is_encoder_decoder", False)


def _check_end_tokens(directory: Path, config: Any) -> None:
    """Raise `CheckpointError` for generation defaults that Transformers refuses, and for end tokens that are no ids."""
    file = directory / GENERATION_CONFIG_NAME
    if file.is_file():
        defaults = read_json_object(file)
        try:
            config = GenerationConfig.from_dict(defaults)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{file}: Transformers refuses it: {reason[:200]}; mend or delete it") from error
    ends = getattr(config, "eos_token_id", None)
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends]) if end is not None):
        raise CheckpointError(
            f"{file if file.is_file() else directory / CONFIG_FILE}: eos_token_id is {ends!r}, expected a token id or "
            "a list of them: mend it"
        )


def model_without_weights(directory: Path) -> PreTrainedModel:
    """Return the model that `config.json` describes, on the meta device; the random state stays as it is.

    Raises `CheckpointError` for a config from which none can be made.
    """
    config = _load(AutoConfig.from_pretrained, directory, "config")

    def made(*_: Any, **__: Any) -> PreTrainedModel:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            return AutoModelForCausalLM.from_config(config)

    return _load(made, directory, "model")


def try_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer at `directory` after a trial on a short text; `CheckpointError` where that fails."""
    tokenizer = load_tokenizer(directory)
    _load(lambda *_, **__: tokenizer.decode(tokenizer("A short text.")["input_ids"]), directory, "tokenizer")
    return tokenizer


def _load(load: Callable[..., Any], directory: Path, what: str, **arguments: Any) -> Any:
    """Return what one of Transformers' loaders makes of `directory`, its refusals in one sentence."""
    try:
        return load(str(directory), local_files_only=True, trust_remote_code=False, **arguments)
    except (MemoryError, SkillgraftError):
        raise
    except Exception as error:  # files from elsewhere make Transformers fail in any way
        if "trust_remote_code" in str(error):
            raise CheckpointError(
                f"{directory}: the {what} needs Python code that comes with the checkpoint, which is never run; "
                "expected an architecture that Transformers has itself: convert it, or use one that it knows"
            ) from error
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{directory}: Transformers cannot load the {what} ({read_config(directory).get('model_type')!r}): "
            f"{reason[:200]}{'…' * (len(reason) > 200)}; expected a checkpoint that this version of it knows"
        ) from error


def context_length(model: PreTrainedModel) -> int:
    """Return how many tokens the model can see; without a limit, more than any text has."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def count_parameters(model: PreTrainedModel) -> int:
    """Return the number of parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
