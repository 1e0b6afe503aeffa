"""Content digests of JSON values: one canonical form, one hash."""

from __future__ import annotations

import json
from typing import Any

from blake3 import blake3


def digest(value: Any) -> str:
    """Return the BLAKE3 hex digest of `value` as canonical JSON: keys sorted, text as UTF-8, default separators."""
    return blake3(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
