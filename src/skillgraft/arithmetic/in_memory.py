"""Compute a plan's tensors in memory: the bytes that a merge would store, for a live model or a comparison."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.plan import Plan
from skillgraft.arithmetic.plan_types import Operand, TensorPlan, Term, tiles_of
from skillgraft.arithmetic.stream import Engine, Sink, gather_statistics, make_tile
from skillgraft.arithmetic.tensor_sources import Stored
from skillgraft.arithmetic.tile_values import operand_values
from skillgraft.arithmetic.tiles import Tile, each_tile
from skillgraft.checkpoint.header import TensorInfo, TensorSpec
from skillgraft.checkpoint.layout import Layout


def make_tensors(plan: Plan, tensors: Sequence[TensorPlan], sink: Sink, engine: Engine, scale: float = 1.0) -> None:
    """Compute `tensors` of a plan for one λ and give their stored bytes to `sink`, tile by tile, from any thread."""
    statistics = gather_statistics(plan, engine)
    with Files(plan.versions) as files:

        def visit(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
            make_tile(plan, statistics, tensor, tile, [scale], [sink], engine.compute, buffers, files)

        each_tile(tiles_of(tensors), visit, engine.thread_buffers())
        files.check_unchanged()


def operand_norms(plan: Plan, engine: Engine) -> dict[tuple[str, int], float]:
    """Return the Frobenius norm of every operand's value by (tensor, the operand's number), weights left out."""
    sums: dict[tuple[str, int], list[float]] = defaultdict(list)
    with Files(plan.versions) as files:

        def visit(tensor: TensorPlan, tile: Tile, buffers: Buffers) -> None:
            present = [operand for operand in tensor.operands if tile.stop <= operand.elements]
            if present:
                values = operand_values(tensor, present, tile, buffers, files)
                for operand, row in zip(present, values, strict=True):
                    sums[tensor.spec.name, operand.number].append(float(row @ row))

        changed = [tensor for tensor in plan.tensors if tensor.operands]
        each_tile(tiles_of(changed), visit, engine.thread_buffers())
    return {key: math.fsum(parts) ** 0.5 for key, parts in sums.items()}


_MANTISSA = {"BF16": 7, "F16": 10, "F32": 23, "F64": 52}
_LEAST_EXPONENT = {"BF16": -126, "F16": -14, "F32": -126, "F64": -1022}
_FP64_SLACK = 2.0**-50
"""Rounding of the fp64 sums of both directions, as a share of the numbers added."""


class Bound(NamedTuple):
    """Of one tensor: the most that the result can be off, the norm before, and how many elements may be off."""

    bound: float
    norm: float
    elements: int


class UndoneBounds:
    """A sink that takes the exact results of undoing a change in fp64 and bounds how far the stored ones are off.

    The grafted number g was what θ + δ was rounded to, so that θ + δ lies between the middles of g and its neighbours,
    and θ in that interval less δ, which lies around the exact x = g − δ. The result is x rounded; it is off by no more
    than the distance to the interval's farther end, and not at all where θ is known to be a number of the same dtype
    (`on_grid`) and no other such number than the result lies in the interval.
    """

    def __init__(self, before: Layout, after: Layout, on_grid: bool, files: Files) -> None:
        self._before, self._after, self._on_grid, self._files = before.tensors, after.tensors, on_grid, files
        self._sums: dict[str, list[tuple[float, float, int]]] = defaultdict(list)

    def write(self, name: str, begin: int, data: memoryview | np.ndarray) -> None:
        """Take exact results (fp64) of the tensor `name` from byte `begin` on."""
        exact = np.frombuffer(data, dtype=np.float64)
        tile = Tile(begin // 8, begin // 8 + len(exact))
        before, after = self._before[name], self._after[name]
        grafted, result = _stored(before, tile, self._files), _stored(after, tile, self._files)
        inward, outward = _gaps(grafted, before.dtype)
        slack = _FP64_SLACK * (np.abs(grafted) + np.abs(exact))
        high = exact + np.where(grafted < 0, inward, outward) / 2 + slack
        low = exact - np.where(grafted < 0, outward, inward) / 2 - slack
        off = np.maximum(np.abs(high - result), np.abs(low - result))
        if self._on_grid and before.dtype == after.dtype:
            inward, outward = _gaps(result, after.dtype)
            over = high >= result + np.where(result < 0, inward, outward)
            under = low <= result - np.where(result < 0, outward, inward)
            off = np.where(over | under, off, 0.0)
        self._sums[name].append((float(off @ off), float(grafted @ grafted), int(np.count_nonzero(off))))

    def bounds(self) -> dict[str, Bound]:
        """Return the bound of each tensor."""
        columns = {name: tuple(zip(*parts, strict=True)) for name, parts in self._sums.items()}
        return {n: Bound(math.fsum(a) ** 0.5, math.fsum(b) ** 0.5, int(sum(c))) for n, (a, b, c) in columns.items()}


class Distance:
    """A sink that takes exact tensors, those of floats in fp64, and sums up how far a checkpoint's stored ones are."""

    def __init__(self, layout: Layout, files: Files) -> None:
        self._tensors, self._files = layout.tensors, files
        self._sums: list[tuple[float, float]] = []

    def write(self, name: str, begin: int, data: memoryview | np.ndarray) -> None:
        """Take the bytes of the tensor `name` from byte `begin` on; other integers are infinitely far."""
        info = self._tensors[name]
        if info.is_float:
            exact = np.frombuffer(data, dtype=np.float64)
            off = exact - _stored(info, Tile(begin // 8, begin // 8 + len(exact)), self._files)
            self._sums.append((float(off @ off), float(exact @ exact)))
            return
        stored = np.empty(len(data), dtype=np.uint8)
        self._files.read(info, begin, stored)
        self._sums.append((0.0 if np.array_equal(stored, np.asarray(data)) else math.inf, 0.0))

    def total(self) -> tuple[float, float]:
        """Return the distance and the norm of what was taken, over all tensors."""
        off, norm = (math.fsum(column) ** 0.5 for column in zip(*self._sums, strict=True))
        return off, norm


def _stored(info: TensorInfo, tile: Tile, files: Files) -> np.ndarray:
    """Return stored elements in fp64."""
    source = Stored(info)
    whole = TensorPlan(TensorSpec(info.name, info.dtype, info.shape), source, ())
    return operand_values(whole, [Operand(0, 1.0, (Term(1, source),))], tile, Buffers(), files)[0]


def _gaps(values: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances of stored numbers to their neighbours of smaller and of larger magnitude."""
    mantissas, exponents = np.frexp(np.abs(values))
    least = _LEAST_EXPONENT[dtype]
    exponents = np.where(values == 0, least, np.maximum(exponents - 1, least))
    outward = np.ldexp(1.0, exponents - _MANTISSA[dtype])
    return np.where((mantissas == 0.5) & (exponents > least), outward / 2, outward), outward
