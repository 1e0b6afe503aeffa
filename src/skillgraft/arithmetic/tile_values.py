"""The values of tiles: the bytes of every source, each read once, and the operands that they make up, in fp64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.kernels.codes import CODES
from skillgraft.arithmetic.plan_types import Operand, TensorPlan, Term
from skillgraft.arithmetic.tensor_sources import Stored, TensorSource
from skillgraft.arithmetic.tiles import Tile
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.checkpoint.tensor_io import TORCH_NAMES
from skillgraft.errors import CompatibilityError


class TileInputs(NamedTuple):
    """The sources of a tile, each once, and which of them make up which operand."""

    raws: np.ndarray
    codes: np.ndarray
    firsts: np.ndarray
    terms: np.ndarray
    signs: np.ndarray
    target: int


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
) -> TileInputs:
    """Read every source of a tile once."""
    sources, codes, firsts, terms, signs = buffers.last(
        (tensor, tuple(operands), with_target), lambda: _arrange(tensor, operands, with_target)
    )
    count = tile.stop - tile.start
    widest = max(DTYPE_BYTES[source.dtype] for source in sources)
    raws = buffers.empty("raws", (len(sources), count * widest), np.uint8)
    for place, source in enumerate(sources):
        source.read(tile.start, tile.stop, files, raws[place])
    return TileInputs(raws, codes, firsts, terms, signs, 0 if with_target else -1)


def _arrange(tensor: TensorPlan, operands: Sequence[Operand], with_target: bool) -> tuple[Any, ...]:
    """Return the distinct sources, their codes, and the terms of the operands as places among them."""
    places: dict[TensorSource, int] = {tensor.target: 0} if with_target else {}
    firsts, terms, signs = [0], [], []
    for operand in operands:
        for term in operand.terms:
            terms.append(places.setdefault(term.source, len(places)))
            signs.append(float(term.sign))
        firsts.append(len(terms))
    codes = np.array([CODES[source.dtype] for source in places])
    return tuple(places), codes, np.array(firsts), np.array(terms), np.array(signs)


def finite_values(tensor: TensorPlan, tile: Tile, buffers: Buffers, files: Files) -> tuple[list[Operand], np.ndarray]:
    """Return the operands that have this tile, and their finite values (operands, count) in fp64."""
    present = [operand for operand in tensor.operands if tile.stop <= operand.elements]
    values = operand_values(tensor, present, tile, buffers, files) if present else np.empty((0, 0))
    for row, operand in enumerate(present):
        if not native.all_finite(values[row]):
            raise not_finite(tensor, [operand], tile, (), buffers, files)
    return present, values


def not_finite(
    tensor: TensorPlan,
    operands: Sequence[Operand],
    tile: Tile,
    scales: Sequence[float],
    buffers: Buffers,
    files: Files,
) -> CompatibilityError:
    """Return the error that says which operand holds NaN or infinity, or that the result overflows."""
    name = tensor.spec.name
    for source in dict.fromkeys([tensor.target, *(term.source for operand in operands for term in operand.terms)]):
        one = replace(tensor, target=source) if isinstance(source, Stored) else tensor
        values = operand_values(one, [Operand(0, 1.0, (Term(1, source),))], tile, buffers, files)[0]
        wrong = int(np.count_nonzero(~np.isfinite(values)))
        if wrong:
            file = source.files[-1].file
            return CompatibilityError(
                f"{file.parent}: tensor {name!r} holds NaN or infinity ({wrong} of elements {tile.start} to "
                f"{tile.stop} in {file.name}); expected finite weights: the checkpoint is damaged or its training "
                "diverged"
            )
    largest = max(scales, key=abs, default=0.0)
    change = f" + {largest} · v" if operands else ""
    return CompatibilityError(
        f"tensor {name!r}{change} overflows {TORCH_NAMES[tensor.spec.dtype]}; use a smaller scale or another dtype, "
        "such as float32"
    )
