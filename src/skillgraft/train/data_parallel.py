"""Data-parallel training: barriers and per-rank batch sharding.

A recipe's `trainer.per_device_train_batch_size` is the batch of the whole run: each of N processes trains on one Nth of
it, in the order of a process alone, so that the gradient is the same up to rounding and a stage's address need not say
how many there were. Alone, everything here does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch import distributed
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from skillgraft.errors import RecipeError, TrainingError
from skillgraft.models.precision import device
from skillgraft.support.rank import is_first, processes, rank


def agree(*flags: bool) -> list[bool]:
    """Return of each flag whether it is set in any process; all wait here for each other."""
    if processes() == 1:
        return list(flags)
    votes = torch.tensor([*flags, False], dtype=torch.int32, device=device())
    distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()[:-1]]


@contextmanager
def first_before_others() -> Iterator[None]:
    """Let the first process do the block alone, then the others: what it wrote there, they find."""
    if not is_first():
        agree()
    yield
    if is_first():
        agree()


def own_folder(work: Path) -> Path:
    """Return where in a stage's folder this process may keep files of its own."""
    folder = work if is_first() else work / f"process-{rank()}"
    folder.mkdir(exist_ok=True)
    return folder


class Share:
    """Collates this process's part of the rows that a process alone would collate into one batch."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate
        self.rank, self.count = rank(), processes()

    def __call__(self, rows: list[Any]) -> Any:
        """Return the batch of one of `count` equal parts; of a rest that does not go round, of a row without loss."""
        size = -(-len(rows) // self.count)
        mine = rows[self.rank * size : (self.rank + 1) * size]
        return self.collate(mine or [{**rows[0], "labels": [-100] * len(rows[0]["labels"])}])


@contextmanager
def shared_batches(trainer: Trainer) -> Iterator[None]:
    """Let `trainer` read whole batches meanwhile, in the order of a process alone, and train on its part of each.

    Accelerate would deal batches out instead, fill the last one of an epoch with rows of the first, and begin a run
    that goes on in a later epoch with the order of the first epoch.
    """
    if processes() == 1:
        yield
        return
    if getattr(trainer, "aux_loss_enabled", False):
        raise TrainingError("a router's balance is of one batch as a whole; train mixtures of experts in one process")
    accelerator, load, collate = trainer.accelerator, trainer.get_train_dataloader, trainer.data_collator

    def as_if_alone(loader: DataLoader, device_placement: bool | None = None) -> DataLoader:
        return prepare_data_loader(
            loader,
            accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=accelerator.device_placement if device_placement is None else device_placement,
            use_seedable_sampler=True,
            data_seed=accelerator.dataloader_config.data_seed,
            non_blocking=accelerator.non_blocking,
        )

    def whole_batches() -> DataLoader:
        prepare, size = accelerator.prepare_data_loader, trainer._train_batch_size
        accelerator.prepare_data_loader, trainer._train_batch_size = as_if_alone, size * processes()
        try:
            return load()
        finally:
            accelerator.prepare_data_loader, trainer._train_batch_size = prepare, size

    trainer.get_train_dataloader, trainer.data_collator = whole_batches, Share(collate)
    try:
        yield
    finally:
        trainer.get_train_dataloader, trainer.data_collator = load, collate


NEUTRAL: dict[str, Any] = {
    "train_sampling_strategy": "random",  # others look at the length of a process's own batch
    "auto_find_batch_size": False,
    "average_tokens_across_devices": True,
    "fsdp": None,
    "deepspeed": None,
    "parallelism_config": None,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
}
"""Arguments of trainers -> the value that they must have for several processes to compute what one does."""

OWN_MEAN = ("bnpo", "chunked_nll")
"""Losses that are a mean over a process's own tokens: the mean of those is another number."""


def check_shares(args: TrainingArguments, count: int) -> None:
    """Raise `RecipeError` where `count` processes could not train by `args`, as a process alone has them."""
    if count == 1:
        return
    values = {name: getattr(args, name, None) for name in NEUTRAL}
    unsupported = [
        (name, repr(NEUTRAL[name])) for name, value in values.items() if value not in (None, [], NEUTRAL[name])
    ]
    if getattr(args, "loss_type", None) in OWN_MEAN:
        unsupported.append(("loss_type", "another"))
    for name, expected in unsupported:
        raise RecipeError(
            f"trainer: {name} is {getattr(args, name)!r}, by which {count} processes would not compute what one does; "
            f"expected {expected}, or start the run without a launcher"
        )
    size = args.per_device_train_batch_size
    if size % count:
        raise RecipeError(
            f"trainer: per_device_train_batch_size is {size}, the batch of all {count} processes together, and cannot "
            f"be cut into {count} equal parts; give a multiple of {count}"
        )
    group, rollout = getattr(args, "num_generations", 1), getattr(args, "generation_batch_size", size)
    if rollout // count % group:
        raise RecipeError(
            f"trainer: {rollout} answers in {count} equal parts are {rollout // count}, which is no multiple of "
            f"num_generations = {group}: each process answers whole questions; give a multiple of {count * group} as "
            "per_device_train_batch_size"
        )
