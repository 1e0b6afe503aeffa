"""The stream of a comparison: one pass over all vectors, and the sums from which every measure follows.

Sums of a tensor are added by `math.fsum` over tiles whose cut depends on the shape alone, so that neither threads nor
shards change a bit. The sums are additive over tensors: a layer, a module kind and the whole model are sums too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from skillgraft.arithmetic.buffers import Buffers, Files
from skillgraft.arithmetic.kernels import native
from skillgraft.arithmetic.kernels.codes import CODES
from skillgraft.arithmetic.tiles import Tile, cut, each_tile
from skillgraft.checkpoint.header import DTYPE_BYTES
from skillgraft.errors import CompatibilityError
from skillgraft.geometry.native import DOT, FOURTH, OPPOSITE, SAME, compare_tile
from skillgraft.geometry.plan import ComparedTensor, ComparePlan
from skillgraft.support.progress import Progress

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Sums:
    """Sums over one tensor, or over any set of them, for k vectors a, b, ….

    elements   number of elements
    base       ‖θ_base‖², 0 without a base
    dot        Σ a·b; ‖a‖² on the diagonal
    fourth     Σ a²·b²
    same       elements where a·b > 0; on the diagonal those that are not zero
    opposite   elements where a·b < 0
    below      elements of a that are not zero and less than half the spacing of bf16 numbers at the base
    isotropic  Σ over tensors of ‖a‖²·‖b‖²/n, n the tensor's elements: see `nulls`
    rotation   Σ over matrices of ‖a·bᵀ‖²/l once their spectra are known (see `nulls`), of a²·b² over all else
    """

    elements: float
    base: float
    dot: Float[np.ndarray, "k k"]
    fourth: Float[np.ndarray, "k k"]
    same: Float[np.ndarray, "k k"]
    opposite: Float[np.ndarray, "k k"]
    below: Float[np.ndarray, " k"]
    isotropic: Float[np.ndarray, "k k"]
    rotation: Float[np.ndarray, "k k"]


def add(sums: Sequence[Sums]) -> Sums:
    """Return the sum of some tensors' sums, added exactly and rounded once."""
    return Sums(**{field.name: exact_sum([getattr(one, field.name) for one in sums]) for field in fields(Sums)})


def sum_tensors(plan: ComparePlan, threads: int, progress: Progress | None = None) -> dict[str, Sums]:
    """Return the sums of every tensor of the plan, in its order, reading each byte once.

    Raises `CompatibilityError`, naming file and tensor, for NaN, infinity or squares that overflow fp64, and
    `CheckpointError` for a file that changed since its header was read.
    """
    done, total, lock = 0, plan.bytes_read, Lock()
    by_tensor: dict[str, Sums] = {}
    vectors = len(plan.vectors)

    def visit(gathering: _Gathering, tile: Tile, buffers: Buffers) -> None:
        nonlocal done
        part = _sum_tile(gathering.tensor, vectors, tile, buffers, files)
        with lock:
            gathering.parts.append(part)
            gathering.left -= 1
            if not gathering.left:
                by_tensor[gathering.tensor.name] = gathering.close(vectors)
            if progress is not None:
                done += sum(source.nbytes * (tile.stop - tile.start) for source in gathering.tensor.sources) // max(
                    1, gathering.tensor.elements
                )
                progress(done, total)

    thread_buffers = [Buffers() for _ in range(threads)]
    with Files(plan.versions) as files:
        each_tile(_tiles(plan.tensors), visit, thread_buffers)
        files.check_unchanged()
    return {tensor.name: by_tensor[tensor.name] for tensor in plan.tensors}


@dataclass
class _Gathering:
    """The parts of one tensor that were summed so far, and how many tiles are left."""

    tensor: ComparedTensor
    left: int
    parts: list[np.ndarray] = field(default_factory=list)

    def close(self, vectors: int) -> Sums:
        total = exact_sum(self.parts)
        if not np.isfinite(total).all():
            raise CompatibilityError(
                f"tensor {self.tensor.name!r}: the squares of its elements overflow fp64; expected smaller weights: no "
                "angle can be computed"
            )
        self.parts.clear()
        rows, columns = np.triu_indices(vectors)
        table = total[1 + vectors :].reshape(-1, 4)
        matrices = np.zeros((4, vectors, vectors))
        matrices[:, rows, columns] = matrices[:, columns, rows] = table.T
        dot = matrices[DOT]
        squares = np.diag(dot)
        return Sums(
            elements=float(self.tensor.elements),
            base=float(total[0]),
            dot=dot,
            fourth=matrices[FOURTH],
            same=matrices[SAME],
            opposite=matrices[OPPOSITE],
            below=total[1 : 1 + vectors],
            isotropic=np.outer(squares, squares) / self.tensor.elements,
            rotation=matrices[FOURTH],
        )


def _tiles(tensors: Iterable[ComparedTensor]) -> Iterator[tuple[_Gathering, Tile]]:
    for tensor in tensors:
        tiles = list(cut(tensor.elements, tensor.breaks))
        gathering = _Gathering(tensor, len(tiles))
        for tile in tiles:
            yield gathering, tile


def _sum_tile(tensor: ComparedTensor, vectors: int, tile: Tile, buffers: Buffers, files: Files) -> np.ndarray:
    """Return one tile's sums in a row: ‖base‖², `below` of each vector, and the four sums of each pair i <= j."""
    present = tuple(operand for operand in tensor.operands if tile.stop <= operand.elements)
    arrangement = buffers.last((tensor.name, present), lambda: arrange(tensor, present))
    count = tile.stop - tile.start
    raws = read_sources(arrangement, tile, buffers, files)
    number = len(present)
    pairs, below = np.empty((number * (number + 1) // 2, 4)), np.empty(number)
    base = compare_tile(
        raws,
        arrangement.codes,
        count,
        arrangement.firsts,
        arrangement.terms,
        arrangement.signs,
        0 if tensor.base is not None else -1,
        native.HALF_VALUES,
        pairs,
        below,
    )
    if not (math.isfinite(base) and np.isfinite(pairs).all()):
        refuse_not_finite(tensor, arrangement, raws, count, tile)
    if number == vectors:
        return np.concatenate(([base], below, pairs.reshape(-1)))
    every = np.zeros((vectors, vectors, 4))
    numbers = [operand.number for operand in present]
    rows, columns = np.triu_indices(number)
    every[[numbers[i] for i in rows], [numbers[j] for j in columns]] = pairs
    every_below = np.zeros(vectors)
    every_below[numbers] = below
    return np.concatenate(([base], every_below, every[np.triu_indices(vectors)].reshape(-1)))


@dataclass(frozen=True)
class Arrangement:
    """The sources of a tensor and which of them make up which vector, in the kernel's terms."""

    sources: tuple[Any, ...]
    codes: np.ndarray
    firsts: np.ndarray
    terms: np.ndarray
    signs: np.ndarray


def arrange(tensor: ComparedTensor, present: Sequence[Any]) -> Arrangement:
    """Return the distinct sources of the base, which comes first, and of the `present` operands."""
    sources: dict[Any, int] = {tensor.base: 0} if tensor.base is not None else {}
    firsts, terms, signs = [0], [], []
    for operand in present:
        for term in operand.terms:
            terms.append(sources.setdefault(term.source, len(sources)))
            signs.append(float(term.sign))
        firsts.append(len(terms))
    codes = np.array([CODES[source.dtype] for source in sources], dtype=np.int64)
    return Arrangement(tuple(sources), codes, np.array(firsts), np.array(terms, dtype=np.int64), np.array(signs))


def read_sources(arrangement: Arrangement, tile: Tile, buffers: Buffers, files: Files) -> np.ndarray:
    """Read the bytes of a tile of every source, each once."""
    widest = max((DTYPE_BYTES[source.dtype] for source in arrangement.sources), default=1)
    raws = buffers.empty("raws", (len(arrangement.sources), (tile.stop - tile.start) * widest), np.uint8)
    for place, source in enumerate(arrangement.sources):
        source.read(tile.start, tile.stop, files, raws[place])
    return raws


def refuse_not_finite(
    tensor: ComparedTensor, arrangement: Arrangement, raws: np.ndarray, count: int, tile: Tile
) -> None:
    """Raise `CompatibilityError` naming the file whose part of a tile holds NaN or infinity; return if none does."""
    values, one = np.empty(count), np.ones(1)
    for place, source in enumerate(arrangement.sources):
        term = np.array([place])
        native.values_tile(raws, arrangement.codes, count, 0, 1, term, one, native.HALF_VALUES, values)
        wrong = int(np.count_nonzero(~np.isfinite(values)))
        if wrong:
            file = source.files[-1].file
            raise CompatibilityError(
                f"{file.parent}: tensor {tensor.name!r} holds NaN or infinity ({wrong} of elements {tile.start} to "
                f"{tile.stop} in {file.name}); expected finite weights: the checkpoint is damaged or its training "
                "diverged"
            )


def exact_sum(parts: Sequence[Any]) -> Any:
    """Return the sum of equally shaped arrays, or of numbers, each element by `math.fsum`: in any order the same."""
    stacked = np.stack(parts)
    flat = stacked.reshape(len(parts), -1)
    if not np.isfinite(flat).all():
        return flat.sum(axis=0).reshape(stacked.shape[1:])
    added = np.array([math.fsum(flat[:, place].tolist()) for place in range(flat.shape[1])])
    return added.reshape(stacked.shape[1:]) if stacked.ndim > 1 else float(added[0])
