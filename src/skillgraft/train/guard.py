"""Guard of training: a loss or gradient that is not finite ends it at once, and a library's exception is one sentence.

Transformers replaces a loss that is NaN before it logs it, so that a run which diverged reports a loss of 0 and saves
NaN. Here the loss of every batch and the norm of every gradient are looked at before the optimizer takes its step.
"""

from __future__ import annotations

import math
import shutil
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from skillgraft.checkpoint.writer import storage_error
from skillgraft.errors import SkillgraftError, TrainingError
from skillgraft.models.diverged import PREDICTIONS, DivergedError
from skillgraft.support.rank import processes
from skillgraft.train.callbacks import LOG

_NOT_FINITE = ("inf", "nan")
"""Both stand in Torch's own sentence on probabilities that cannot be drawn from."""


@contextmanager
def guarded(trainer: Trainer, stage: str) -> Iterator[None]:
    """End training meanwhile where a loss or gradient is not finite, and explain what libraries raise.

    Nothing of a run that diverged stays: resuming it would lead to the same end.

    Raises `TrainingError`: the loss is not a number, or a library failed; memory errors and Ctrl-C pass.
    """
    step, clip = trainer.training_step, trainer.accelerator.clip_grad_norm_

    def checked_step(*args: Any, **kwargs: Any) -> Any:
        loss = step(*args, **kwargs)
        _check(loss, "loss")
        return loss

    def checked_clip(*args: Any, **kwargs: Any) -> Any:
        norm = clip(*args, **kwargs)
        if norm is not None:
            _check(norm, "gradient")
        return norm

    trainer.training_step, trainer.accelerator.clip_grad_norm_ = checked_step, checked_clip
    try:
        with explained(stage, Path(trainer.args.output_dir)):
            yield
    except DivergedError as error:
        _forget(Path(trainer.args.output_dir))
        raise TrainingError(
            f"{stage}: {error} at step {trainer.state.global_step + 1} of {trainer.state.max_steps}: training "
            f"diverged at trainer.learning_rate = {trainer.args.learning_rate:g}; nothing is kept: lower it, or warm "
            "it up by trainer.warmup_steps"
        ) from error
    finally:
        trainer.training_step, trainer.accelerator.clip_grad_norm_ = step, clip


@contextmanager
def sampling(stage: str, workdir: Path) -> Iterator[None]:
    """Explain what libraries raise while a model is sampled before it is trained."""
    try:
        with explained(stage, workdir):
            yield
    except DivergedError as error:
        raise TrainingError(
            f"{stage}: {error}: the weights that are sampled are too large; lower trainer.learning_rate of "
            "what trained them"
        ) from error


def _check(value: Any, what: str) -> None:
    number = float(value)
    if not math.isfinite(number):
        raise DivergedError(f"the {what} is {'infinite' if math.isinf(number) else 'not a number'}")


def _forget(workdir: Path) -> None:
    """Remove the trainer's checkpoints and log."""
    for folder in workdir.glob("checkpoint-*"):
        shutil.rmtree(folder, ignore_errors=True)
    (workdir / LOG).unlink(missing_ok=True)


@contextmanager
def explained(stage: str, workdir: Path) -> Iterator[None]:
    """Turn an exception that a library or a user's own code raises into a `TrainingError` of one sentence.

    Our own errors, memory errors, a full disk, what follows from another process and everything raised in Skillgraft's
    own code pass.
    """
    try:
        yield
    except (SkillgraftError, DivergedError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        file, line = _place(error)
        if storage_error(error, workdir) is not None or file is None or "out of memory" in str(error):
            raise
        if processes() > 1 and "distributed" in file.parts:  # another process failed first, and says why
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        if all(word in reason for word in _NOT_FINITE) and "probability" in reason:
            raise DivergedError(PREDICTIONS) from error
        package = _package(file)
        keys = "change the keys of trainer: or adapt: that this is about, or leave them out"
        raise TrainingError(
            f"{stage}: {package or file.stem} stopped with {type(error).__name__} ({file.name}, line {line}): "
            f"{reason[:300]}{'…' * (len(reason) > 300)}; {keys if package else 'mend that code'}"
        ) from error


def _place(error: BaseException) -> tuple[Path | None, int]:
    """Return where an exception was raised, or None where that is in Skillgraft's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return None, 0
    file = Path(frames[-1].filename)
    return (None if _own() in file.parents else file), frames[-1].lineno or 0


def _own() -> Path:
    return Path(sys.modules["skillgraft"].__file__ or "").parent


def _package(file: Path) -> str | None:
    """Return the name of the installed package that a file belongs to (`torch`, `trl`), None for a user's own code."""
    for place in ("purelib", "platlib", "stdlib"):
        root = Path(sysconfig.get_path(place))
        if root in file.parents:
            return file.relative_to(root).parts[0].removesuffix(".py")
    return None
