"""One tile on the CPU: read the sources' bytes, let the compiled kernel do the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.combine import COMBINED, part_of
from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.methods.dare import keep_mask
from skillgraft.arithmetic.methods.model_stock import stock_ratio
from skillgraft.arithmetic.methods.slerp import slerp_weights
from skillgraft.arithmetic.plan import Operand, Plan, TensorPlan
from skillgraft.arithmetic.tensor_sources import TensorSource
from skillgraft.arithmetic.tiles import Tile
from skillgraft.checkpoint.header import DTYPE_BYTES


class Computed(NamedTuple):
    """A computed tile: the bytes for each λ, ‖change‖² (of a model: ‖value‖²), each ‖stored − exact‖², ‖stored‖²."""

    stored: np.ndarray
    squared_norm: float
    squared_losses: list[float]
    squared_stored: float
    finite: bool


class Inputs(NamedTuple):
    """The sources of a tile, each once, and which of them make up which operand."""

    raws: np.ndarray
    codes: np.ndarray
    firsts: np.ndarray
    terms: np.ndarray
    signs: np.ndarray
    target: int


def compute(
    plan: Plan,
    tensor: TensorPlan,
    operands: Sequence[Operand],
    tile: Tile,
    facts: Any,
    scales: Sequence[float],
    buffers: Buffers,
    files: Files,
) -> Computed:
    """Return one tile of a tensor for every λ in `scales`; the bytes lie in a buffer that the next call reuses."""
    count = tile.stop - tile.start
    vectors = plan.method.of == "vectors"
    if plan.method.name in COMBINED:
        inputs, finite_inputs = _combined(plan, tensor, operands, tile, facts, buffers, files)
        how = _plain(np.ones(1))
    else:
        inputs, finite_inputs = read_inputs(tensor, operands, tile, vectors, buffers, files), True
        how = _settings(plan, tensor, operands, tile, facts)
    outs = buffers.empty("outs", (len(scales), count * DTYPE_BYTES[tensor.spec.dtype]), np.uint8)
    sums = buffers.empty("sums", (len(scales) + 2,))
    finite = native.merge_tile(
        inputs.raws,
        inputs.codes,
        count,
        inputs.firsts,
        inputs.terms,
        inputs.signs,
        how.weights,
        how.masks,
        how.density,
        how.method,
        how.thresholds,
        how.normalize,
        how.divisor,
        how.factor,
        inputs.target,
        np.asarray(scales, dtype=np.float64),
        native.HALF_VALUES,
        outs,
        native.CODES[tensor.spec.dtype],
        sums,
    )
    found = sums.tolist()
    return Computed(outs, found[0], found[1:-1], found[-1], bool(finite) and finite_inputs)


def _combined(
    plan: Plan,
    tensor: TensorPlan,
    operands: Sequence[Operand],
    tile: Tile,
    facts: Any,
    buffers: Buffers,
    files: Files,
) -> tuple[Inputs, bool]:
    """Return the target and what a method without a kernel makes, as two sources; are all finite?"""
    count = tile.stop - tile.start
    values = operand_values(tensor, operands, tile, buffers, files)
    finite = all(native.all_finite(row) for row in values)  # a mask would pass over NaN in silence
    raws = buffers.empty("combined", (2, 8 * count), np.uint8)
    tensor.target.read(tile.start, tile.stop, files, raws[0])
    raws[1].view(np.float64)[:] = COMBINED[plan.method.name](list(values), part_of(plan, tensor, operands, tile, facts))
    codes = np.array([native.CODES[tensor.target.dtype], native.F64])
    return Inputs(raws, codes, np.array([0, 1]), np.array([1]), np.ones(1), 0), finite


def operand_values(
    tensor: TensorPlan, operands: Sequence[Operand], tile: Tile, buffers: Buffers, files: Files
) -> np.ndarray:
    """Return the operands' values of one tile (operands, count) in fp64."""
    count = tile.stop - tile.start
    inputs = read_inputs(tensor, operands, tile, False, buffers, files)
    values = buffers.empty("values", (len(operands), count))
    for row in range(len(operands)):
        first, last = int(inputs.firsts[row]), int(inputs.firsts[row + 1])
        native.values_tile(
            inputs.raws,
            inputs.codes,
            count,
            first,
            last,
            inputs.terms,
            inputs.signs,
            native.HALF_VALUES,
            values[row],
        )
    return values


def read_inputs(
    tensor: TensorPlan, operands: Sequence[Operand], tile: Tile, with_target: bool, buffers: Buffers, files: Files
) -> Inputs:
    """Read every source of a tile once."""
    sources, codes, firsts, terms, signs = buffers.last(
        (tensor, tuple(operands), with_target), lambda: _arrange(tensor, operands, with_target)
    )
    count = tile.stop - tile.start
    widest = max(DTYPE_BYTES[source.dtype] for source in sources)
    raws = buffers.empty("raws", (len(sources), count * widest), np.uint8)
    for place, source in enumerate(sources):
        source.read(tile.start, tile.stop, files, raws[place])
    return Inputs(raws, codes, firsts, terms, signs, 0 if with_target else -1)


def _arrange(tensor: TensorPlan, operands: Sequence[Operand], with_target: bool) -> tuple[Any, ...]:
    """Return the distinct sources, their codes, and the terms of the operands as places among them."""
    places: dict[TensorSource, int] = {tensor.target: 0} if with_target else {}
    firsts, terms, signs = [0], [], []
    for operand in operands:
        for term in operand.terms:
            terms.append(places.setdefault(term.source, len(places)))
            signs.append(float(term.sign))
        firsts.append(len(terms))
    codes = np.array([native.CODES[source.dtype] for source in places])
    return tuple(places), codes, np.array(firsts), np.array(terms), np.array(signs)


class _Settings(NamedTuple):
    weights: np.ndarray
    method: int
    masks: np.ndarray
    density: float
    thresholds: np.ndarray
    normalize: bool
    divisor: float
    factor: float


_NO_MASKS = np.empty((0, 0), dtype=np.bool_)
_NO_THRESHOLDS = np.empty(0)


def _plain(weights: np.ndarray) -> _Settings:
    """Return the settings of a weighted sum."""
    return _Settings(weights, native.WEIGHTED_SUM, _NO_MASKS, 1.0, _NO_THRESHOLDS, False, 1.0, 1.0)


def _settings(plan: Plan, tensor: TensorPlan, operands: Sequence[Operand], tile: Tile, facts: Any) -> _Settings:
    """Return a method's parameters in the kernel's terms."""
    name, parameters = plan.method.name, plan.parameters
    plain = _plain(np.array([operand.weight for operand in operands], dtype=np.float64))
    if name == "ratatouille" or (name == "linear" and parameters.normalize):
        return plain._replace(divisor=float(sum(operand.weight for operand in operands)))
    if name == "slerp":
        (aa, ab), (_, bb) = facts
        return plain._replace(weights=np.array(slerp_weights(parameters.t, ab, aa**0.5, bb**0.5)))
    if name == "model_stock":
        return plain._replace(factor=stock_ratio(facts) / len(operands))
    if name == "ties":
        kept = np.array([facts[tensor.operands.index(operand)] for operand in operands])
        return plain._replace(
            method=native.ELECT, thresholds=kept, normalize=parameters.normalize, factor=parameters.scale
        )
    if name in ("dare", "dare_ties"):
        tensor_name, count = tensor.spec.name, tile.stop - tile.start
        masks = np.stack(
            [keep_mask(parameters.seed, o.number, tensor_name, tile.start, count, parameters.density) for o in operands]
        )
        dropped = plain._replace(masks=masks, density=parameters.density)
        if name == "dare_ties":
            return dropped._replace(method=native.ELECT, normalize=parameters.normalize)
        return dropped
    return plain
