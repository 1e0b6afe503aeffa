"""Load causal language models and tokenizers with Transformers, offline and without its own bars and advice."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging


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
    """Return the causal language model at `directory` in `dtype`, on the CPU."""
    quiet()
    model = AutoModelForCausalLM.from_pretrained(str(directory), dtype=dtype, local_files_only=True)
    # Generation hands the last position to the output head as a strided slice. Torch 2.13 multiplies that in bf16 on
    # the CPU without its fast kernel: 5.2 s instead of 0.02 s for 64 rows and 49,152 words.
    model.get_output_embeddings().register_forward_pre_hook(lambda head, inputs: (inputs[0].contiguous(), *inputs[1:]))
    return model


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
