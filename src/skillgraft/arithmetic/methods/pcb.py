"""PCB-Merging: coefficients per parameter from competition within and between tasks (arXiv 2410.02396, section 3.2).

`pcb` is the definition, and what the CPU and a GPU run; on the CPU the exponentials in the scores that it takes are
compiled. `test_numpy_numba_and_torch_agree_on_every_bit` in `tests/arithmetic/test_sparse_methods.py` holds those to
their definition in `statistics.pcb_scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from skillgraft.arithmetic.arrays import Array, weighted_sum
from skillgraft.arithmetic.methods.method import Density, Method, Parameters, Statistic, TileContext

if TYPE_CHECKING:
    from jaxtyping import Float

    from skillgraft.arithmetic.buffers import Buffers
    from skillgraft.arithmetic.plan_types import TensorPlan
    from skillgraft.arithmetic.statistics.pcb_scores import PcbStatistics


class Pcb(Parameters):
    """`ratio` (r) of each vector's coefficients is kept: of the whole vector as in the paper, or of each tensor."""

    ratio: Density = Field(0.2, description="share of each vector's coefficients that is kept")
    scope: Literal["model", "tensor"] = Field("model", description="kept of the whole vector, or of each tensor")


def pcb(
    vectors: Sequence[Float[Array, " e"]],
    weights: Sequence[float],
    betas: Sequence[Float[Array, " e"]],
    thresholds: Sequence[float],
) -> Float[Array, " e"]:
    """Return Σ wᵢ·β̂ᵢ⊙τᵢ / Σ β̂ᵢ, the change to the base: β̂ᵢ is βᵢ where it is not below its threshold, else 0.

    `betas` are the `statistics.pcb_scores.scores`. 0 where no vector keeps the element. The weights are the paper's λᵢ
    (one λ for all, or one found for each).
    """
    coefficients = [beta * (beta >= least) for beta, least in zip(betas, thresholds, strict=True)]
    above = weighted_sum([beta * vector for beta, vector in zip(coefficients, vectors, strict=True)], weights)
    below = weighted_sum(coefficients, [1.0] * len(vectors))
    return above / (below + (below == 0))


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    from skillgraft.arithmetic.statistics.pcb_scores import fast_numerators, rows_of, scores

    weights = dict(zip(tile.numbers, tile.weights, strict=True))
    statistics: PcbStatistics = tile.statistics
    rows = rows_of(statistics.numbers, tile.numbers, values)
    betas = scores(fast_numerators(rows, statistics.low, statistics.high), statistics)
    return pcb(rows, [weights.get(number, 0.0) for number in statistics.numbers], betas, statistics.thresholds)


def _scores(
    tensors: Sequence[TensorPlan], parameters: Pcb, thread_buffers: Sequence[Buffers]
) -> dict[str, PcbStatistics]:
    from skillgraft.arithmetic.statistics.pcb_scores import pcb_statistics

    return pcb_statistics(tensors, parameters.ratio, parameters.scope, thread_buffers)


PCB = Method(
    name="pcb",
    inputs="vectors",
    combine=_combine,
    parameters=Pcb,
    statistics=Statistic(_scores, passes=3, memory_bytes=100e6),
    min_operands=2,
    bytes_per_second=5e8,
)
