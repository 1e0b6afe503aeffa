"""ETA: the remaining time of a stage, from its measured rate. Loads no torch."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]


class Pace:
    """Seconds left of one stage: the mean time of the steps seen so far, times the steps to come.

    Steps before the first one seen, of a stage that goes on after a kill, took no time here and are not counted. Where
    the count begins anew (pass rates first, then training), so does the measurement.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)
        self._steps = 0

    def moved(self, step: int, steps: int) -> None:
        """Note that `step` of `steps` is done now."""
        now = self._clock()
        if self._first is None or steps != self._steps or step < self._last[1]:
            self._first, self._steps = (now, step), steps
        self._last = (now, step)

    def left(self) -> float | None:
        """Return the seconds left, None while no two steps were seen."""
        if self._first is None or self._last[1] == self._first[1]:
            return None
        (began, first), (now, step) = self._first, self._last
        seconds = (self._steps - step) * (now - began) / (step - first)
        return max(seconds - (self._clock() - now), 0.0)
