"""Compare vectors of parameters: norms, cosines, signs, spectra and angles, beside what chance gives.

`plan` finds and checks the operands from headers, `sums` streams them once, `spectra` takes the matrices one by one,
`nulls` says what random vectors would give. Importing the package loads neither torch nor the compiled kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skillgraft.support.lazy import names_of

if TYPE_CHECKING:
    from skillgraft.geometry.comparison import compare

__all__ = ["compare"]

__getattr__ = names_of(__name__, {"compare": "comparison"})
