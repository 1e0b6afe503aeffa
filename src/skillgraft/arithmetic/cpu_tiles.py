"""Compute a tile on the CPU: read the sources' bytes and call the compiled kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.kernels.codes import CODES, F64
from skillgraft.arithmetic.methods.method import KernelSettings, Method, TileContext
from skillgraft.arithmetic.plan_types import Operand, TensorPlan
from skillgraft.arithmetic.tile_values import TileInputs, operand_values, read_inputs
from skillgraft.arithmetic.tiles import Tile
from skillgraft.checkpoint.header import DTYPE_BYTES


class ComputedTile(NamedTuple):
    """A computed tile: the bytes for each λ, ‖change‖² (of a model: ‖value‖²), each ‖stored − exact‖², ‖stored‖²."""

    stored: np.ndarray
    squared_norm: float
    squared_losses: list[float]
    squared_stored: float
    finite: bool


def compute(
    method: Method,
    parameters: Any,
    tensor: TensorPlan,
    operands: Sequence[Operand],
    tile: Tile,
    statistics: Any,
    scales: Sequence[float],
    buffers: Buffers,
    files: Files,
) -> ComputedTile:
    """Return one tile of a tensor for every λ in `scales`; the bytes lie in a buffer that the next call reuses.

    `statistics` are those of the whole tensor that the method asks for.
    """
    count = tile.stop - tile.start
    with_target = method.inputs == "vectors"
    context = method.context(parameters, tensor, operands, tile, statistics)
    if method.kernel is None:
        inputs, finite_inputs = _combine(method, context, tensor, operands, tile, buffers, files, with_target)
        settings = KernelSettings(_ONE)
    else:
        inputs, finite_inputs = read_inputs(tensor, operands, tile, with_target, buffers, files), True
        settings = method.kernel(context)
    outs = buffers.empty("outs", (len(scales), count * DTYPE_BYTES[tensor.spec.dtype]), np.uint8)
    sums = buffers.empty("sums", (len(scales) + 2,))
    finite = native.merge_tile(
        inputs.raws,
        inputs.codes,
        count,
        inputs.firsts,
        inputs.terms,
        inputs.signs,
        np.asarray(settings.weights, dtype=np.float64),
        _NO_MASKS if settings.masks is None else settings.masks,
        settings.density,
        settings.rule,
        np.asarray(settings.thresholds, dtype=np.float64),
        settings.normalize,
        settings.divisor,
        settings.factor,
        inputs.target,
        np.asarray(scales, dtype=np.float64),
        native.HALF_VALUES,
        outs,
        CODES[tensor.spec.dtype],
        sums,
    )
    squares = sums.tolist()
    return ComputedTile(outs, squares[0], squares[1:-1], squares[-1], bool(finite) and finite_inputs)


def _combine(
    method: Method,
    context: TileContext,
    tensor: TensorPlan,
    operands: Sequence[Operand],
    tile: Tile,
    buffers: Buffers,
    files: Files,
    with_target: bool,
) -> tuple[TileInputs, bool]:
    """Return the target and what `combine` makes of the operands as sources, and whether all operands are finite."""
    values = operand_values(tensor, operands, tile, buffers, files)
    finite = all(native.all_finite(row) for row in values)  # a mask would pass over NaN in silence
    raws = buffers.empty("combined", (2, 8 * context.size), np.uint8)
    if with_target:
        tensor.target.read(tile.start, tile.stop, files, raws[0])
    raws[1].view(np.float64)[:] = method.combine(list(values), context)
    codes = np.array([CODES[tensor.target.dtype], F64])
    return TileInputs(raws, codes, np.array([0, 1]), np.array([1]), np.ones(1), 0 if with_target else -1), finite


_ONE = (1.0,)
_NO_MASKS = np.empty((0, 0), dtype=np.bool_)
