"""Facts to one HTML page that needs nothing else, and both files on disk.

The templates are filled with autoescaping on, and data reaches no script and no style: only text and attributes. The
page's content security policy allows its own script and style by their hashes and nothing else, so that even markup
that slipped through could neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from skillgraft.errors import DataError, MissingPathError, StorageError
from skillgraft.report.answers import examples_view
from skillgraft.report.charts import CHART_BOTTOM, CHART_HEIGHT, CHART_LEFT, CHART_RIGHT, CHART_TOP, CHART_WIDTH
from skillgraft.report.curves import training_view
from skillgraft.report.facts import Evaluation, Facts, RunsFacts, Stage
from skillgraft.report.gains import gain_view
from skillgraft.report.heat import geometry_view
from skillgraft.report.scales import sweep_view
from skillgraft.report.tables import difference_groups, retained_view, score_table_view
from skillgraft.report.wording import headline_parts, retention_remark
from skillgraft.support import formatting
from skillgraft.support.atomic import replace_together
from skillgraft.support.escape import escape_tree

# of HTML for maps and all examples together, for all examples, and for one cell of a map: keeps the page under 3 MB
LARGE_BYTES, EXAMPLES_BYTES, CELL_BYTES = 2_500_000, 1_500_000, 170
TEMPLATES = Path(__file__).parent


def render(facts: Facts) -> str:
    """Return the page of `facts` (see `facts.Facts`); lists that are empty or absent leave their section out."""
    return environment().get_template("page.html.j2").render(**_page_view(escape_tree(facts)))


def write_report(facts: Facts | RunsFacts, directory: Path, html: str | None = None) -> Path:
    """Write `report.json` and `report.html` (`html`, else the page of one run) into `directory`; return its path.

    Both replace what a former report left, each in one step, and only once both are complete. Raises `StorageError`
    where a file cannot be written.
    """
    texts = {
        "report.json": json.dumps(_strict_json(facts), indent=2, allow_nan=False) + "\n",
        "report.html": html or render(cast(Facts, facts)),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        replace_together({directory / name: text.encode() for name, text in texts.items()}, durable=True)
    except OSError as error:
        raise StorageError(f"cannot write the report to {directory}: {error}; free space or choose another") from error
    return directory / "report.html"


def read_report(directory: Path) -> Facts:
    """Return the facts in a run's `report.json`, strings as they are there.

    Raises `MissingPathError` where there is none and `DataError` for a file that is not a run's report.
    """
    path = directory / "report.json"
    if not path.is_file():
        raise MissingPathError(
            f"{directory} has no report.json; expected the folder of a finished run, such as runs/quickstart"
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        whole: Any = {**facts, **{name: facts[name] for name in ("title", "evaluations", "stages")}}
        render(whole)
        json.dumps(_strict_json(facts), allow_nan=False)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RecursionError,
        TemplateError,
    ) as error:
        raise DataError(
            f"{path} is not the report of a run ({type(error).__name__}: {error}); expected a file that "
            "`skillgraft run` wrote"
        ) from error
    return facts


def _page_view(facts: Facts) -> dict[str, Any]:
    evaluations = [item for item in facts.get("evaluations", []) if item["rows"]]
    stages = facts.get("stages", [])
    where = geometry_view(facts.get("geometry"))
    cells = sum(len(figure.cells) for measure in where["maps"] for figure in measure["figures"]) if where else 0
    examples_bytes = min(EXAMPLES_BYTES, max(0, LARGE_BYTES - CELL_BYTES * cells))
    return {
        **{name: facts.get(name, "") for name in ("title", "created", "skillgraft_version", "command", "recipe_path")},
        "recipe_yaml": facts.get("recipe_yaml", ""),
        "machine": facts.get("machine", {}),
        "base": facts.get("base"),
        "versions": facts.get("versions", {}),
        "evaluations": [_evaluation_view(item, examples_bytes // len(evaluations)) for item in evaluations],
        "where": where,
        "sweeps": [view for item in facts.get("sweeps", []) if (view := sweep_view(item, evaluations))],
        "training": [training_view(item) for item in facts.get("training", [])],
        "skills": facts.get("skills", []),
        "timeline": _timeline(stages),
        "total_seconds": sum(formatting.finite(stage["seconds"]) or 0 for stage in stages),
        **frame_view(),
    }


def frame_view(*styles: str) -> dict[str, Any]:
    """Return the parts of every page: its own style (with the files `styles` after it), script, and the policy."""
    style = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", *styles))
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    return {"style": Markup(style), "script": Markup(script), "policy": _policy(style, script)}


def _evaluation_view(evaluation: Evaluation, examples_bytes: int) -> dict[str, Any]:
    sentences, by_task = retention_remark(evaluation), retained_view(evaluation)
    return {
        "stage": evaluation["stage"],
        "questions": evaluation["questions"],
        "documents": evaluation["documents"],
        "headline": headline_parts(evaluation),
        "scores": score_table_view(evaluation),
        "gain": gain_view(evaluation),
        "differences": difference_groups(evaluation),
        "retention": {"sentences": sentences, "by_task": by_task} if sentences or by_task else None,
        "examples": examples_view(evaluation, examples_bytes),
    }


def _timeline(stages: list[Stage]) -> list[dict[str, Any]]:
    """Return the stages with where each begins and how long it is, in percent of all of them one after the other."""
    seconds = [formatting.finite(stage["seconds"]) or 0.0 for stage in stages]
    total = sum(seconds) or 1.0
    begins = itertools.accumulate(seconds, initial=0.0)
    return [
        {
            "data": {},
            **stage,
            "start": min(99.5, round(100 * begin / total, 2)),
            "width": max(0.5, round(100 * spent / total, 2)),
        }
        for stage, begin, spent in zip(stages, begins, seconds, strict=False)
    ]


def _policy(style: str, script: str) -> str:
    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    sources = f"style-src {digest(style)}; script-src {digest(script)}"
    return f"default-src 'none'; {sources}; base-uri 'none'; form-action 'none'"


def environment() -> Environment:
    """Return the templates with autoescaping on and the filters that they use."""
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("count", "duration", "moment", "one_decimal", "percent", "significant", "size")
    templates.filters.update({name: getattr(formatting, name) for name in names})
    templates.globals["chart_box"] = {
        "width": CHART_WIDTH,
        "height": CHART_HEIGHT,
        "left": CHART_LEFT,
        "right": CHART_WIDTH - CHART_RIGHT,
        "top": CHART_TOP,
        "bottom": CHART_HEIGHT - CHART_BOTTOM,
    }
    return templates


def _strict_json(value: Any) -> Any:
    """Return `value` with null for numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(name): _strict_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict_json(item) for item in value]
    return formatting.finite(value) if isinstance(value, float) else value
