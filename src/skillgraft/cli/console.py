"""The terminal: results go to standard output, everything else to standard error."""

from __future__ import annotations

import sys

from rich.console import Console

out_console = Console(width=None if sys.stdout.isatty() else 110)
err_console = Console(stderr=True)
