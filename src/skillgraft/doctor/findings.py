"""Findings of checks and their severity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "note", "warning", "error"]

EXIT_CODES: dict[Severity, int] = {"ok": 0, "note": 0, "warning": 1, "error": 2}
"""Severity, from mild to severe, and the exit code of a `doctor` whose worst finding it is."""


@dataclass(frozen=True)
class Finding:
    """One result of a check: what was found, what that means, and the remedy if one is needed."""

    check: str
    severity: Severity
    found: str
    meaning: str
    remedy: str = ""


def worst(findings: Sequence[Finding]) -> Severity:
    """Return the worst severity; `ok` without findings."""
    order = list(EXIT_CODES)
    return max((finding.severity for finding in findings), key=order.index, default="ok")
