"""Threads over tiles: every tensor is cut into the same pieces whatever the machine, and any thread takes the next.

The cut is a property of the tensor's shape alone, and nothing is summed across tiles but by `math.fsum`, which is
exact: so neither the number of threads nor the order in which they finish changes a bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event, Lock
from typing import NamedTuple, TypeVar

from skillgraft.arithmetic.buffers import Buffers

TILE_ELEMENTS = 1 << 18
"""Elements of a tile: its bytes, and what is computed of them, stay in a core's cache."""

MAX_THREADS = 8

Item = TypeVar("Item")


class Tile(NamedTuple):
    """The elements from `start` to `stop` of a flattened tensor."""

    start: int
    stop: int


def cut(elements: int, breaks: Sequence[int] = (), block: int = 1) -> Iterator[Tile]:
    """Yield the tiles of a tensor of `elements` elements, ending at each of `breaks` too and else between blocks."""
    step = max(TILE_ELEMENTS // block, 1) * block
    stops = sorted({*range(step, elements, step), *(b for b in breaks if 0 < b < elements), elements})
    start = 0
    for stop in stops:
        if stop > start:
            yield Tile(start, stop)
        start = stop


def default_threads() -> int:
    """Return the number of cores that this process may use, at most `MAX_THREADS`: beyond, memory is the limit."""
    return min(MAX_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def each_tile(
    tiles: Iterable[tuple[Item, Tile]],
    visit: Callable[[Item, Tile, Buffers], None],
    thread_buffers: Sequence[Buffers],
) -> None:
    """Call `visit` for every tile, in one thread for each of `thread_buffers`; re-raise the error of the first tile.

    An interrupt of the main thread stops the workers before it propagates.
    """
    source, lock, stop = enumerate(iter(tiles)), Lock(), Event()
    failures: list[tuple[int, BaseException]] = []

    def work(buffers: Buffers) -> None:
        while not stop.is_set():
            with lock:
                taken = next(source, None)
            if taken is None:
                return
            number, (item, tile) = taken
            try:
                visit(item, tile, buffers)
            except BaseException as error:
                failures.append((number, error))
                stop.set()

    with ThreadPoolExecutor(len(thread_buffers)) as pool:
        running = [pool.submit(work, buffers) for buffers in thread_buffers]
        try:
            wait(running)
        finally:
            stop.set()
    for done in running:
        done.result()
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]
