"""What a check says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "note", "warning", "error"]

EXIT_CODES: dict[Severity, int] = {"ok": 0, "note": 0, "warning": 1, "error": 2}
"""Severity, mild to grave, and the exit code of a `doctor` that found nothing graver."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, what that means, what to do where something is to be done."""

    check: str
    severity: Severity
    found: str
    meaning: str
    remedy: str = ""


def worst(findings: Sequence[Finding]) -> Severity:
    """Return the gravest severity; `ok` for none."""
    order = list(EXIT_CODES)
    return max((finding.severity for finding in findings), key=order.index, default="ok")
