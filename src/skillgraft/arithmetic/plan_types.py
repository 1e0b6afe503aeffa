"""Types of a plan: the terms and operands that every tensor of an output is computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from skillgraft.arithmetic.merge_schema import MergeRecipe
from skillgraft.arithmetic.tensor_sources import Stored, TensorSource
from skillgraft.arithmetic.tiles import Tile, cut
from skillgraft.checkpoint.header import TensorSpec
from skillgraft.checkpoint.layout import Layout


class Term(NamedTuple):
    """One summand of an operand's value: `sign` times the source."""

    sign: int
    source: TensorSource


@dataclass(frozen=True)
class Operand:
    """One operand's value for one tensor: the sum of its terms; `number` is its place in the recipe."""

    number: int
    weight: float
    terms: tuple[Term, ...]

    @cached_property
    def elements(self) -> int:
        """The elements that all terms have: fewer than the target's where a vocabulary is not padded."""
        return min(term.source.elements for term in self.terms)


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output; without operands it is the target's, cast to the planned dtype where that differs."""

    spec: TensorSpec
    target: Stored
    operands: tuple[Operand, ...]
    block: int = 1
    """Elements that belong together: a tile ends between such blocks."""

    @property
    def breaks(self) -> tuple[int, ...]:
        """Ends of the operands, in elements, where some are shorter than the target."""
        return tuple(sorted({operand.elements for operand in self.operands}))


@dataclass(frozen=True)
class Draft:
    """A plan before its method has seen it: the tensors, in the target's order, and what they were planned from.

    `inputs` are fingerprints by name (`base`, `operand0.model`, `operand0.minus`, …), `layouts` the checkpoints'.
    """

    recipe: MergeRecipe
    tensors: tuple[TensorPlan, ...]
    inputs: Mapping[str, str]
    layouts: Mapping[Path, Layout]
    remarks: tuple[str, ...]


def tiles_of(tensors: Iterable[TensorPlan]) -> Iterator[tuple[TensorPlan, Tile]]:
    """Yield every tile of every tensor, each cut where some operand ends."""
    for tensor in tensors:
        for tile in cut(tensor.target.elements, tensor.breaks, tensor.block):
            yield tensor, tile
