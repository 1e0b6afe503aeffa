"""Progress callbacks: what long work tells of itself while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Progress = Callable[[int, int, Mapping[str, float]], None]
"""Training: (step, steps, latest metrics)."""
Counter = Callable[[int, int], None]
"""Work that is counted: (done, total)."""
NamedCounter = Callable[[str, int, int], None]
"""Work on tensors: (tensor's name, bytes or elements done, total)."""
