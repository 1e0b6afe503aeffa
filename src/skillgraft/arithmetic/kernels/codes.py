"""Numbers that name dtypes and rules of combination in the compiled kernels. Loads nothing."""

from __future__ import annotations

F64, F32, F16, BF16 = 0, 1, 2, 3
CODES = {"F64": F64, "F32": F32, "F16": F16, "BF16": BF16}
"""Of the safetensors dtypes that are floats."""

WEIGHTED_SUM, ELECT = 0, 1
"""Rules by which `tiles.merge_tile` combines operands: Σ wᵢ·vᵢ, or TIES's election of a sign with the disjoint mean."""
