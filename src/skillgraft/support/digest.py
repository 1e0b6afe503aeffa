"""Digest of JSON data: one BLAKE3 hash, whatever the order of a mapping's keys."""

from __future__ import annotations

import json
from typing import Any

from blake3 import blake3


def digest(value: Any) -> str:
    """Return the BLAKE3 hash, as 64 hexadecimal digits, of JSON data."""
    return blake3(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
