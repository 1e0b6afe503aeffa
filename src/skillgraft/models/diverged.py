"""Diverged training: the signal that a loss, a gradient or a prediction is not finite, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from skillgraft.errors import CheckpointError

PREDICTIONS = "the loss is not a number, as the model's predictions are none"
"""What is said of logits that no token can be drawn from."""


class DivergedError(ArithmeticError):
    """A loss, a gradient or what the trained model predicts is NaN or infinite; `train.guard` explains it."""


@contextmanager
def explained_predictions(directory: str) -> Iterator[None]:
    """Turn a `DivergedError` of a checkpoint that is only asked into a `CheckpointError`."""
    try:
        yield
    except DivergedError as error:
        raise CheckpointError(
            f"{directory}: the model's predictions hold NaN or infinity, expected finite values: its training "
            "diverged, or its weights are too large for the precision; take an earlier checkpoint"
        ) from error
