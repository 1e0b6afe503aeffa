"""A trial of trainer arguments: optimizer, schedule and data loader are made once, on a module of six weights.

What their constructors refuse (a package that is missing, an unknown key of `lr_scheduler_kwargs`, momentum of 1) would
else come up when the trainer is built: after the stages before it have run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from skillgraft.errors import RecipeError

_STEPS = 100
"""Of a schedule whose length is not known yet."""


def try_arguments(arguments: TrainingArguments) -> None:
    """Raise `RecipeError` for an optimizer, a schedule or a data loader that cannot be made, or that makes no sense."""
    steps = arguments.max_steps if arguments.max_steps > 0 else _STEPS
    with torch.random.fork_rng(devices=[]):
        module = torch.nn.Linear(2, 2)
        trainer: Any = object.__new__(Trainer)  # its constructor makes folders
        trainer.args, trainer.model = arguments, module
        trainer.optimizer = trainer.lr_scheduler = trainer.optimizer_cls_and_kwargs = None
        optimizer = _made("optim", arguments.optim, trainer.create_optimizer)
        schedule = _made("lr_scheduler_type", arguments.lr_scheduler_type, lambda: trainer.create_scheduler(steps))
        if isinstance(schedule, LambdaLR):
            _made("lr_scheduler_type", arguments.lr_scheduler_type, lambda: _check_rates(schedule, steps))
        _made("optim", arguments.optim, lambda: _step(module, optimizer))
        if not all(parameter.isfinite().all() for parameter in module.parameters()):
            raise RecipeError(
                f"trainer: one step of {arguments.optim.value} at learning_rate = {arguments.learning_rate:g} makes "
                "weights that are not finite; lower the rate, or change the optimizer's arguments"
            )
        _made("dataloader_num_workers", arguments.dataloader_num_workers, lambda: _loader(arguments))


def _made(key: str, value: Any, make: Any) -> Any:
    """Return what `make` makes, its refusal as one sentence about the argument `key`."""
    try:
        return make()
    except RecipeError:
        raise
    except Exception as error:  # optimizers and schedules are many, from several packages
        reason = " ".join(str(error).split()).rstrip(".")
        raise RecipeError(
            f"trainer: {key}: {getattr(value, 'value', value)} cannot be used with these arguments: "
            f"{type(error).__name__}: {reason[:300]}"
        ) from error


def _check_rates(schedule: LambdaLR, steps: int) -> None:
    places = sorted({0, 1, steps // 4, steps // 2, steps - 1, steps})
    rates = [
        base * rate(step) for base, rate in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True) for step in places
    ]
    if not all(isinstance(rate, int | float) and math.isfinite(rate) and rate >= 0 for rate in rates):
        raise RecipeError(
            f"trainer: lr_scheduler_kwargs make learning rates of {rates[0]}, … {rates[-1]}, expected numbers of at "
            "least 0; change them or leave them out"
        )


def _step(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take one step with a gradient of which a part is 0, as that of words that do not occur."""
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad.view(-1)[0] = 1.0
    optimizer.step()


def _loader(arguments: TrainingArguments) -> DataLoader:
    return DataLoader(
        [0],
        num_workers=arguments.dataloader_num_workers,
        persistent_workers=arguments.dataloader_persistent_workers,
        prefetch_factor=arguments.dataloader_prefetch_factor,
        multiprocessing_context=arguments.dataloader_multiprocessing_context,
    )
