"""Save trained models: every checkpoint that training writes goes through here, and none holds NaN or infinity."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from skillgraft.errors import TrainingError


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity, in one pass and without a copy."""
    if not tensor.numel() or not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
        return True
    return all(map(torch.isfinite, torch.aminmax(tensor.detach())))


def first_not_finite(model: torch.nn.Module) -> str | None:
    """Return the name of the first parameter or buffer that holds NaN or infinity, None where all are finite."""
    return next((name for name, tensor in model.state_dict().items() if not is_finite(tensor)), None)


def check_finite(model: torch.nn.Module) -> None:
    """Raise `TrainingError` for trained weights that hold NaN or infinity."""
    if (name := first_not_finite(model)) is not None:
        raise TrainingError(
            f"training diverged: the trained weights hold NaN or infinity, first in {name!r}; nothing is kept: lower "
            "trainer.learning_rate, or warm it up"
        )


def save_checkpoint(model: PreTrainedModel, out: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write weights and tokenizer into `out`; `TrainingError` for weights that are not finite."""
    check_finite(model)
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
