"""Task arithmetic: a weighted sum of task vectors, added to the base (arXiv 2212.04089, section 2).

`task_arithmetic` is the reference definition and `kernel` what the CPU runs; `test_the_kernels_are_the_definitions` in
`tests/arithmetic/test_methods.py` holds both to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from skillgraft.arithmetic.arrays import Array, weighted_sum
from skillgraft.arithmetic.methods.method import KernelSettings, Mergekit, Method, Parameters, TileContext

if TYPE_CHECKING:
    from jaxtyping import Float


class TaskArithmetic(Parameters):
    """No parameters: the weights say it all."""


def task_arithmetic(vectors: Sequence[Float[Array, " n"]], weights: Sequence[float]) -> Float[Array, " n"]:
    """Return Σ wᵢ·τᵢ, the change to the base, with τᵢ = θᵢ − θ_base.

    With another model in the base's place, θ_A + λ(θ_B − θ_C).
    """
    return weighted_sum(vectors, weights)


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return task_arithmetic(values, tile.weights)


def _kernel(tile: TileContext) -> KernelSettings:
    return KernelSettings(tile.weights)


def _mergekit(_parameters: TaskArithmetic, _models: Sequence[str], _base: str) -> dict[str, Any]:
    return {"normalize": False}


TASK_ARITHMETIC = Method(
    name="task_arithmetic",
    inputs="vectors",
    combine=_combine,
    parameters=TaskArithmetic,
    kernel=_kernel,
    mergekit=Mergekit("task_arithmetic", _mergekit),
)
