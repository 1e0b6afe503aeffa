"""Rank of this process among those that a launcher started for one run (`accelerate launch`, `torchrun`).

Between stages the launcher's own variables are hidden, so that libraries see one process; `RANK_KEPT` says the rank
then, so that there is one answer at all times.
"""

from __future__ import annotations

import os

RANK_KEPT = "SKILLGRAFT_RANK"


def rank() -> int:
    """Return which of a run's processes this is, from 0; 0 where no launcher started it."""
    return int(os.environ.get(RANK_KEPT) or os.environ.get("RANK") or 0)


def is_first() -> bool:
    """Return whether this process is the one that plans, writes, logs and reports."""
    return rank() == 0
