"""The contract of an adapter: how a trainer applies it, what its saved factors are, and how they are merged. No torch.

An adapter kind is one file of this package and one line in `ADAPTERS`. `adapt:` of a training stage names it by `kind`;
the other keys are its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

FULL_BYTES = 16
"""Bytes of each weight in full fine-tuning: fp32 weight, gradient and both Adam moments."""


class Adapter(Protocol):
    """An adapter with its checked arguments."""

    def check(self, model: Any) -> None:
        """Raise `RecipeError` for what does not fit `model`, which may get the adapter: give one without weights."""

    def apply(self, model: Any) -> Any:
        """Return PEFT's config for `model`, checked to fit, from which the trainer puts the adapter on it."""

    def merged(self, model: Any) -> AbstractContextManager[None]:
        """Fold the adapter into the frozen weights while answers are sampled."""

    def restore(self, model: Any, folder: Path) -> None:
        """Load what `model.save_pretrained(folder)` saved into an adapted model."""

    def load_merged(self, start: Path, folder: Path, dtype: Any) -> Any:
        """Return the checkpoint `start` in `dtype` with the adapter saved in `folder` merged into it."""

    def save(self, model: Any, start: Path, out: Path, tokenizer: Any) -> None:
        """Write into `out` the adapted model's merged checkpoint, and the adapter beside it for `extract`."""


@dataclass(frozen=True)
class AdapterKind:
    """A kind of adapter.

    Attributes:
        create: returns the adapter of a recipe's arguments, `RecipeError` for wrong ones; imports heavy libraries.
        peft_type: of the `adapter_config.json` that it saves, by which a saved adapter finds its kind again.
        exact_delta: reads a saved adapter's update as stored factors (`peft_file.PeftAdapter`); `CompatibilityError`
            where the update is no product of two factors.
        bytes_per_weight: of the base's weights in training; what the adapter itself takes is small beside them.
    """

    create: Callable[[Mapping[str, Any]], Adapter]
    peft_type: str
    exact_delta: Callable[[Path], Any]
    bytes_per_weight: float
