"""The order in which statistics visit tensors: in groups, and by short pieces spread over all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from skillgraft.arithmetic.plan_types import TensorPlan
from skillgraft.arithmetic.tiles import TILE_ELEMENTS, Tile

SAMPLE_RUN = 2048
"""Elements of a sample that lie side by side."""


def groups_of(tensors: Iterable[TensorPlan], elements: int = 16 * TILE_ELEMENTS) -> Iterator[list[TensorPlan]]:
    """Yield runs of tensors of about `elements` elements in all, so that small tensors share the threads."""
    group: list[TensorPlan] = []
    for tensor in tensors:
        group.append(tensor)
        if sum(t.target.elements for t in group) >= elements or len(group) >= 256:
            yield group
            group = []
    if group:
        yield group


def sample_runs(tensors: Sequence[TensorPlan], share: float) -> Iterator[tuple[TensorPlan, Tile]]:
    """Yield short pieces spread evenly over every tensor, `share` of its elements in all."""
    for tensor in tensors:
        wanted = share * tensor.target.elements
        if wanted < SAMPLE_RUN // 8:
            continue
        number = max(1, round(wanted / SAMPLE_RUN))
        step = tensor.target.elements / number
        for index in range(number):
            start = int(index * step)
            stop = min(start + SAMPLE_RUN, int((index + 1) * step), tensor.target.elements)
            if all(not start < b < stop for b in tensor.breaks) and stop > start:
                yield tensor, Tile(start, stop)
