"""Arithmetic on checkpoints: extract a skill vector, inject it, merge models, make the random control.

`methods` are the definitions, pure functions; `plan` says what every tensor of an output is computed from, and `stream`
does it, tile by tile. Importing the package loads neither torch nor the compiled kernels: each name is imported when
it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skillgraft.support.lazy import names_of

if TYPE_CHECKING:
    from skillgraft.arithmetic.extraction import extract
    from skillgraft.arithmetic.injection.inject import inject, inject_scales
    from skillgraft.arithmetic.merging import merge
    from skillgraft.arithmetic.random_control import random_vector

__all__ = ["extract", "inject", "inject_scales", "merge", "random_vector"]

__getattr__ = names_of(
    __name__,
    {
        "extract": "extraction",
        "inject": "injection.inject",
        "inject_scales": "injection.inject",
        "merge": "merging",
        "random_vector": "random_control",
    },
)
