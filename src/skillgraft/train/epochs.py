"""The order in which TRL's on-policy trainers take their prompts, as a function of the epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler


class EpochSampler(Sampler[int]):
    """The order of TRL's sampler, as a function of the epoch.

    TRL 1.16 draws each epoch's order from one generator that lives as long as the process, so that a run resumed after
    its first epoch would begin with the first order again and learn something else than an uninterrupted one.
    """

    def __init__(self, sampler: RepeatSampler) -> None:
        self.sampler, self.epoch = sampler, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order the next iteration gives; the trainer calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(self.epoch):
                torch.randperm(self.sampler.num_samples, generator=self.sampler.generator)
        yield from self.sampler

    def __len__(self) -> int:
        return len(self.sampler)
