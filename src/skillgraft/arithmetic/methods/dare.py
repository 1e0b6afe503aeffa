"""DARE: drop elements of a task vector at random and rescale the rest (arXiv 2311.03099, section 3.2).

Which elements are dropped is a function of (seed, operand, tensor name, element) alone, by the counter-based
generator Philox4x64-10 (Salmon et al. 2011): tiles, threads and order don't matter.

`dare` is the reference definition and `kernel` what the CPU runs; `test_the_kernels_are_the_definitions` in
`tests/arithmetic/test_methods.py` holds both to the same bits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from skillgraft.arithmetic.arrays import Array, beside, weighted_sum
from skillgraft.arithmetic.methods.method import Density, KernelSettings, Mergekit, Method, Parameters, TileContext

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float

WORDS = 8
"""32-bit words that one count of the generator gives."""


class Dare(Parameters):
    """`density` is kept of each vector, at random by `seed`, and divided by it."""

    density: Density = Field(0.2, description="share of each vector that is kept, at random")
    seed: int = Field(0, description="of the random masks")


def keep_mask(seed: int, operand: int, name: str, start: int, count: int, density: float) -> np.ndarray:
    """Return which of the elements `start` … `start + count` are kept, each with probability `density` (bool)."""
    import numpy as np
    from blake3 import blake3

    if density >= 1:
        return np.ones(count, dtype=bool)
    digest = blake3(json.dumps([seed, operand, name]).encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    first = start // WORDS
    blocks = -(-(start + count) // WORDS) - first
    generator = np.random.Philox(key=key, counter=np.array([first, 0, 0, 0], dtype=np.uint64))
    words = generator.random_raw(blocks * WORDS // 2).view(np.uint32)[start - first * WORDS :][:count]
    return words < np.uint32(min(round(density * 2**32), 2**32 - 1))


def keep_masks(tile: TileContext) -> np.ndarray:
    """Return `keep_mask` of each operand of a tile (operands, count)."""
    import numpy as np

    seed, density = tile.parameters.seed, tile.parameters.density
    return np.stack([keep_mask(seed, number, tile.name, tile.start, tile.size, density) for number in tile.numbers])


def drop_and_rescale(
    vectors: Sequence[Float[Array, " n"]], masks: Bool[np.ndarray, "vectors n"], density: float
) -> list[Float[Array, " n"]]:
    """Return the vectors' kept elements divided by `density`, 0 in place of the others."""
    return [vector * beside(mask, vector) / density for vector, mask in zip(vectors, masks, strict=True)]


def dare(
    vectors: Sequence[Float[Array, " n"]],
    weights: Sequence[float],
    masks: Bool[np.ndarray, "vectors n"],
    density: float,
) -> Float[Array, " n"]:
    """Return Σ wᵢ·(mᵢ⊙τᵢ)/p, the change to the base; mᵢ is 1 with probability p (`density`), else 0."""
    return weighted_sum(drop_and_rescale(vectors, masks, density), weights)


def _combine(values: Sequence[Array], tile: TileContext) -> Array:
    return dare(values, tile.weights, keep_masks(tile), tile.parameters.density)


def _kernel(tile: TileContext) -> KernelSettings:
    return KernelSettings(tile.weights, masks=keep_masks(tile), density=tile.parameters.density)


def rescaled_by_density(parameters: Dare, normalize: bool) -> dict[str, Any]:
    """Return mergekit's parameters that rescale by 1/density: its own `rescale` keeps the L1 norm instead."""
    factor = 1 / parameters.density
    return {"normalize": normalize, "rescale": False, **({} if factor == 1 else {"lambda": factor})}


def _mergekit(parameters: Dare, _models: Sequence[str], _base: str) -> dict[str, Any]:
    return rescaled_by_density(parameters, normalize=False)


def mergekit_density(parameters: Dare) -> dict[str, Any]:
    """Return mergekit's parameters of each model."""
    return {"density": parameters.density}


DARE = Method(
    name="dare",
    inputs="vectors",
    combine=_combine,
    parameters=Dare,
    kernel=_kernel,
    mergekit=Mergekit("dare_linear", _mergekit, mergekit_density),
)
