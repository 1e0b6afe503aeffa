"""Report of a run: facts -> `report.json` -> one self-contained `report.html`, and the same rows for the terminal.

    from skillgraft.report import score_table, write_report

    page = write_report(facts, Path("runs/past-squad"))       # facts: see `skillgraft.report.facts.Facts`
    rich.print(score_table(facts["evaluations"][0]))

`facts.py` is the schema, `wording.py` puts the result into sentences, `skillgraft.support.escape` makes untrusted text
harmless, `charts.py` computes the geometry of the drawings, and `page.py` fills the templates, where autoescaping is
the one place that turns text into HTML. Importing the package loads none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skillgraft.support.lazy import names_of

if TYPE_CHECKING:
    from skillgraft.report.facts import Facts
    from skillgraft.report.page import read_report, render, write_report
    from skillgraft.report.terminal import score_table
    from skillgraft.report.wording import headline

__all__ = ["Facts", "headline", "read_report", "render", "score_table", "write_report"]

__getattr__ = names_of(
    __name__,
    {
        "Facts": "facts",
        "headline": "wording",
        "read_report": "page",
        "render": "page",
        "score_table": "terminal",
        "write_report": "page",
    },
)
