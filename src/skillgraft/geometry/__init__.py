"""How vectors of parameters lie to each other: norms, cosines, signs, spectra, angles, all beside what chance gives.

`plan` finds and checks the operands from headers, `sums` streams them once, `spectra` takes the matrices one by one,
`nulls` says what random vectors would give. Importing the package loads neither torch nor the compiled kernels.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skillgraft.geometry.comparison import compare

__all__ = ["compare"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.comparison"), name)
