"""Numbers as a reader wants them: three decimals for scores, `–` for what is missing, units that fit the size."""

from __future__ import annotations

import math
from datetime import datetime

MISSING = "–"
MINUS = "−"


def finite(value: object) -> float | None:
    """Return `value` as a float, or None where it is missing, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def score(value: object) -> str:
    """Return a score with three decimals."""
    number = finite(value)
    return MISSING if number is None else _minus(f"{number:.3f}")


def signed(value: object) -> str:
    """Return a difference with its sign and three decimals; the sign stays where rounding leaves only zeros."""
    number = finite(value)
    if number is None:
        return MISSING
    return "0.000" if number == 0 else f"{'+' if number > 0 else MINUS}{abs(number):.3f}"


def one_decimal(value: object) -> str:
    """Return a number with one decimal."""
    number = finite(value)
    return MISSING if number is None else _minus(f"{number:,.1f}")


def significant(value: object) -> str:
    """Return a number with three significant digits."""
    number = finite(value)
    if number is None:
        return MISSING
    if number != 0 and not 1e-3 <= abs(number) < 1e6:
        mantissa, exponent = f"{number:.2e}".split("e")
        return _minus(f"{mantissa} × 10^{int(exponent)}")
    return _minus(f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}")


def percent(value: object) -> str:
    """Return a share as a percentage with one decimal."""
    number = finite(value)
    return MISSING if number is None else _minus(f"{100 * number:.1f}%")


def count(value: object) -> str:
    """Return a whole number with grouped thousands."""
    number = finite(value)
    return MISSING if number is None else _minus(f"{number:,.0f}")


def duration(seconds: object) -> str:
    """Return seconds as `0.4 s`, `42 s`, `12.5 min` or `3 h 05 min`."""
    number = finite(seconds)
    if number is None:
        return MISSING
    if number < 59.5:
        return f"{number:.0f} s" if number >= 9.95 or number == 0 else f"{number:.1f} s"
    if number < 3597:
        return f"{number / 60:.1f} min"
    hours, minutes = divmod(round(number / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def size(value: object) -> str:
    """Return bytes in decimal units."""
    return _prefixed(value, ["B", "kB", "MB", "GB", "TB", "PB"])


def operations(value: object) -> str:
    """Return floating-point operations in decimal units, `–` for none."""
    units = ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP", "YFLOP"]
    return _prefixed(value, units) if finite(value) else MISSING


def moment(iso: str) -> str:
    """Return an ISO 8601 time as `20 November 2025, 05:38 UTC`, or the text itself if it is not one."""
    try:
        time = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname() or ''}".rstrip()


def _prefixed(value: object, units: list[str]) -> str:
    number = finite(value)
    if number is None:
        return MISSING
    power = 0
    while abs(number) >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    digits = 0 if power == 0 or number >= 99.95 else 1
    return _minus(f"{number:,.{digits}f} {units[power]}")


def _minus(text: str) -> str:
    return text.replace("-", MINUS, 1) if text.startswith("-") else text
