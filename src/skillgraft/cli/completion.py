"""What a shell completes beyond verbs, options and files: recipes, skills, methods, runs, pages.

Called at every press of the key, so that nothing here loads more than it must. What is not found is left to the shell,
which then completes files.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from skillgraft.errors import SkillgraftError
from skillgraft.skills.names import shipped_skills


def complete_recipes(incomplete: str) -> list[str]:
    """Return the YAML files that begin so, here or one folder down."""
    return _paths(incomplete, ("*.yaml", "*.yml", "*/*.yaml", "*/*.yml"))


def complete_runs(incomplete: str) -> list[str]:
    """Return the folders of finished runs that begin so."""
    return _folders(incomplete, "run.json")


def complete_skills(incomplete: str) -> list[str]:
    """Return names in the library, shipped skills and directories of skills that begin so."""
    from skillgraft.skills.names import library_names

    names = set(shipped_skills())
    with suppress(SkillgraftError):
        names |= set(library_names())
    return [*beginning(sorted(names), incomplete), *_folders(incomplete, "skill.json")]


def complete_library(incomplete: str) -> list[str]:
    """Return the names in the library that begin so."""
    from skillgraft.skills.names import library_names

    with suppress(SkillgraftError):
        return beginning(library_names(), incomplete)
    return []


def complete_methods(incomplete: str) -> list[str]:
    """Return the merging methods that begin so."""
    from skillgraft.arithmetic.methods import all_methods

    return beginning(all_methods(), incomplete)


def beginning(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names that begin so, each once, in their order."""
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _folders(incomplete: str, mark: str) -> list[str]:
    """Return the folders that hold the file `mark` and begin so, here or one folder down."""
    return [path.removesuffix(f"/{mark}") for path in _paths(incomplete, (f"*/{mark}", f"*/*/{mark}"))]


def _paths(incomplete: str, patterns: Iterable[str]) -> list[str]:
    """Return the paths that `patterns` find below the folder of what was typed, and that begin with it."""
    folder = incomplete[: incomplete.rfind("/") + 1]
    with suppress(OSError, ValueError):
        found = {path for pattern in patterns for path in Path(folder or ".").glob(pattern)}
        return beginning(sorted(folder + path.relative_to(folder or ".").as_posix() for path in found), incomplete)
    return []
