"""Units for people: durations as text."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return `42 s`, `3 min 05 s` or `2 h 07 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 100:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
