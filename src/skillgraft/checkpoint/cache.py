"""Where Skillgraft keeps what it can compute again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path:
    """Return the cache directory: `$SKILLGRAFT_CACHE`, else `~/.cache/skillgraft`. It may not exist yet."""
    configured = os.environ.get("SKILLGRAFT_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "skillgraft"
