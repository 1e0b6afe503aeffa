"""The verb `doctor` on the command line: what this machine and this installation can do."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from skillgraft.cli.console import err_console, out_console
from skillgraft.cli.options import JsonOption

if TYPE_CHECKING:
    from skillgraft.doctor import Finding

STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


def doctor(
    runs: Annotated[Path, typer.Option("--runs", help="Directory in which runs will be kept.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """Diagnose Python, Torch, devices, memory, disk and the rest: what was found, what it means, what to do.

    Changes nothing and needs no network. Exit code: 0 for nothing worse than a note, 1 for a warning (it works, but
    slower or not everything), 2 for an error (something will fail).
    """
    from skillgraft.doctor import EXIT_CODES, examine, worst

    spinner = err_console.status("looking at this machine …") if err_console.is_terminal else contextlib.nullcontext()
    with spinner:
        findings = examine(runs)
    severity = worst(findings)
    if as_json:
        print(json.dumps({"severity": severity, "findings": [asdict(finding) for finding in findings]}))
    else:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 is itself a finding
        _show(findings)
        counts = {each: sum(finding.severity == each for finding in findings) for each in ("error", "warning")}
        problems = ", ".join(f"{number} {each}{'s' * (number > 1)}" for each, number in counts.items() if number)
        done = "Nothing to worry about. Next: skillgraft init FOLDER-OF-DOCUMENTS"
        out_console.print(f"\n{problems + '.' if problems else done}", highlight=False)
    raise typer.Exit(EXIT_CODES[severity])


def _show(findings: list[Finding]) -> None:
    checks = [finding.check for finding in findings]
    width = max(map(len, checks), default=0)
    for number, finding in enumerate(findings):
        check = finding.check if number == 0 or checks[number - 1] != finding.check else ""
        line = Text.assemble(
            (f"{finding.severity:<8}", STYLES[finding.severity]), (f"{check:<{width + 2}}", "bold"), finding.found
        )
        out_console.print(line, soft_wrap=True)
        for text, dim in ((finding.meaning, "dim"), (f"→ {finding.remedy}" if finding.remedy else "", "")):
            for part in textwrap.wrap(text, max(out_console.width - width - 10, 30), break_on_hyphens=False):
                out_console.print(Text(" " * (width + 10) + part, dim), soft_wrap=True)
