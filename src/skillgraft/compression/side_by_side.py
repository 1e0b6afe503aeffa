"""Tensors of a skill side by side, each on its own core: BLAS gains little from several cores on one matrix."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from skillgraft.arithmetic.buffers import Buffers
from skillgraft.skills.skill import Skill
from skillgraft.support import resources

Result = TypeVar("Result")

WORKING_BYTES = 12
"""Bytes that a tensor takes for each element while it is decomposed: in fp32, rounded, and its Krylov space."""


def side_by_side(
    skill: Skill, names: Iterable[str], work: Callable[[str, Buffers], Result]
) -> Iterator[tuple[str, Result]]:
    """Yield each parameter's name with what `work` makes of it, in the order given; an error comes in its turn.

    As many at once as there are cores, and memory for the largest of them. Each thread has a `Buffers` for what does
    not outlive `work`: fresh memory costs as much as several passes over it.
    """
    names = list(names)
    workers, before = _workers(skill, names), torch.get_num_threads()
    own = threading.local()

    def begin() -> None:
        torch.set_num_threads(max(1, before // workers))
        own.scratch = Buffers()

    pool = ThreadPoolExecutor(workers, initializer=begin)
    waiting: deque[tuple[str, Future[Result]]] = deque()
    try:
        for name in names:
            waiting.append((name, pool.submit(lambda name: work(name, own.scratch), name)))
            if len(waiting) > workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _workers(skill: Skill, names: list[str]) -> int:
    largest, free = max((skill.entry(name).elements for name in names), default=1), resources.memory().available
    room = len(names) if free is None else free // (WORKING_BYTES * largest)
    return max(1, min(resources.cores(), len(names), room))
