"""DARE: drop elements of a task vector at random and rescale the rest (arXiv 2311.03099, section 3.2).

Which elements are dropped is a function of (seed, operand, tensor name, element) alone, by the counter-based
generator Philox4x64-10 (Salmon et al. 2011): tiles, threads and order don't matter.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from blake3 import blake3

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

WORDS = 8
"""32-bit words that one count of the generator gives."""


def keep_mask(seed: int, operand: int, name: str, start: int, count: int, density: float) -> np.ndarray:
    """Return which of the elements `start` … `start + count` are kept, each with probability `density` (bool)."""
    if density >= 1:
        return np.ones(count, dtype=bool)
    digest = blake3(json.dumps([seed, operand, name]).encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8").astype(np.uint64)
    first = start // WORDS
    blocks = -(-(start + count) // WORDS) - first
    generator = np.random.Philox(key=key, counter=np.array([first, 0, 0, 0], dtype=np.uint64))
    words = generator.random_raw(blocks * WORDS // 2).view(np.uint32)[start - first * WORDS :][:count]
    return words < np.uint32(min(round(density * 2**32), 2**32 - 1))


def drop_and_rescale(vector: Float[Tensor, " n"], kept: np.ndarray, density: float) -> Float[Tensor, " n"]:
    """Return the kept elements divided by `density`, the others 0, in place."""
    import torch

    return vector.mul_(torch.from_numpy(kept).to(vector.device)).div_(density)
