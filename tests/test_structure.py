"""The structure of the package: which wings there are, who may import whom, and how long the main path is."""

import ast
import importlib
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
FILES = {
    ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted((SOURCE / "skillgraft").rglob("*.py"))
    if "shipped" not in file.parts or file.name == "shipped.py"
}
TOP = {"__init__", "__main__", "errors", "run"}
MAY_RUN_STAGES = {
    "__main__",
    "cli",
    "doctor",
    "manual",
    "pipeline",
    "recipe",
    "report",
    "run",
    "stages",
    "starter",
    "__init__",
}
"""Wings that may know stages and the pipeline; all others are libraries."""
MAIN_PATH = (
    "run.py",
    "pipeline/plan.py",
    "stages/inject.py",
    "arithmetic/stream.py",
    "arithmetic/methods/ties.py",
)


def imported(name: str) -> set[str]:
    """The package's own modules that a module imports anywhere in it, but for type checking alone."""
    tree = ast.parse(FILES[name].read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return {each for each in found if each in FILES and each != name}


IMPORTS = {name: imported(name) for name in FILES}


def wing(name: str) -> str:
    """The folder or file at the top of the package that a module lies in."""
    return [*name.split("."), "__init__"][1]


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_files_import_each_other_in_a_circle():
    assert circle(IMPORTS) == []


def test_no_wings_import_each_other_in_a_circle():
    wings = defaultdict(set)
    for name, others in IMPORTS.items():
        wings[wing(name)] |= {wing(other) for other in others} - {wing(name)}
    assert circle(wings) == []


def test_few_modules_lie_at_the_top():
    assert {file.stem for file in (SOURCE / "skillgraft").glob("*.py")} == TOP


def test_no_library_knows_stages_or_the_pipeline():
    for name, others in IMPORTS.items():
        if wing(name) not in MAY_RUN_STAGES:
            assert {wing(other) for other in others}.isdisjoint({"stages", "pipeline", "recipe", "cli", "report"}), name


@pytest.mark.parametrize(
    ("floor", "below"),
    [
        ("errors", set()),
        ("support", {"errors"}),
        ("checkpoint", {"errors", "support"}),
        ("skills", {"errors", "support", "checkpoint", "adapters"}),
    ],
)
def test_the_ground_floors_import_only_what_is_below_them(floor, below):
    for name, others in IMPORTS.items():
        if wing(name) == floor:
            assert {wing(other) for other in others} <= {floor, *below}, name


@pytest.mark.parametrize("name", sorted(FILES))
def test_every_module_imports(name):
    if name != "skillgraft.__main__":
        importlib.import_module(name)


def test_the_newcomers_path_is_short():
    lines = [len((SOURCE / "skillgraft" / file).read_text().splitlines()) for file in MAIN_PATH]
    readme = len((ROOT / "README.md").read_text().splitlines())
    recipe = len((ROOT / "recipes" / "quickstart.yaml").read_text().splitlines())
    assert sum(lines) + readme + recipe <= 1200, dict(zip(MAIN_PATH, lines, strict=True))


def test_no_module_is_two():
    """A file that passes 400 lines is two files."""
    assert {name for name, file in FILES.items() if len(file.read_text().splitlines()) > 420} == set()
