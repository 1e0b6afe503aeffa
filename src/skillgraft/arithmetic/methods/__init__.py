"""The merging methods: each a pure function of tensors and numbers; `METHODS` says what each one needs.

On a GPU these functions run as they are (`torch_tiles`); on the CPU the same definitions are compiled (`kernels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Part(NamedTuple):
    """What a method is told beside the numbers of one tile.

    `numbers` are the places in the recipe of the operands that are there, `weights` theirs; `facts` is what the first
    pass found of the whole tensor (None without one), one entry or row per operand of `numbers`.
    """

    name: str
    start: int
    numbers: Sequence[int]
    weights: Sequence[float]
    facts: Any
    parameters: Any


@dataclass(frozen=True)
class Method:
    """A method: what its operands are, what it must know of whole tensors first, how many operands it takes.

    Of `models` it makes a tensor, of `vectors` (task vectors) the change to the base. `first_pass`: `gram`, the matrix
    of dot products; `thresholds`, the magnitude of the smallest element to be kept; `bands`, those of the largest and
    the smallest; `balance`, PCB's scores; `conflicts`, the layers' opposing signs.
    """

    name: str
    of: Literal["models", "vectors"]
    first_pass: Literal["gram", "thresholds", "bands", "balance", "conflicts"] | None = None
    least: int = 1
    most: int | None = None


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("linear", "models"),
        Method("task_arithmetic", "vectors"),
        Method("slerp", "models", "gram", least=2, most=2),
        Method("ties", "vectors", "thresholds"),
        Method("dare", "vectors"),
        Method("dare_ties", "vectors"),
        Method("model_stock", "vectors", "gram", least=2),
        Method("breadcrumbs", "vectors", "bands"),
        Method("pcb", "vectors", "balance", least=2),
        Method("cabs", "vectors", least=2),
        Method("mediator", "vectors", "conflicts", least=2),
        Method("copa", "vectors", least=2),
        Method("ratatouille", "models", least=2),
        Method("instruction_residual", "vectors", most=1),
    )
}
