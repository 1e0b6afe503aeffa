"""Diverged training: the signal that a loss, a gradient or a prediction is not finite, and what is said of it."""

from __future__ import annotations

PREDICTIONS = "the loss is not a number, as the model's predictions are none"
"""What is said of logits that no token can be drawn from."""


class DivergedError(ArithmeticError):
    """A loss, a gradient or what the trained model predicts is NaN or infinite; `train.guard` explains it."""
