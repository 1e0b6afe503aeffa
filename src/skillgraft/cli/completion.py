"""Shell completion of values: recipes, skills, methods and runs, beyond verbs, options and files.

Called at every press of the Tab key, so nothing here loads more than it must. Where nothing matches, the shell
completes files.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from skillgraft.errors import SkillgraftError
from skillgraft.skills.names import shipped_skills


def complete_recipes(incomplete: str) -> list[str]:
    """Complete YAML files, here or one folder down."""
    return _paths(incomplete, ("*.yaml", "*.yml", "*/*.yaml", "*/*.yml"))


def complete_runs(incomplete: str) -> list[str]:
    """Complete folders of finished runs."""
    return _folders(incomplete, "run.json")


def complete_skills(incomplete: str) -> list[str]:
    """Complete names in the library, shipped skills and directories of skills."""
    from skillgraft.skills.names import library_names

    names = set(shipped_skills())
    with suppress(SkillgraftError):
        names |= set(library_names())
    return [*beginning(sorted(names), incomplete), *_folders(incomplete, "skill.json")]


def complete_library(incomplete: str) -> list[str]:
    """Complete names in the library."""
    from skillgraft.skills.names import library_names

    with suppress(SkillgraftError):
        return beginning(library_names(), incomplete)
    return []


def complete_methods(incomplete: str) -> list[str]:
    """Complete merging methods."""
    from skillgraft.arithmetic.methods import all_methods

    return beginning(all_methods(), incomplete)


def beginning(names: Iterable[str], incomplete: str) -> list[str]:
    """Return the names that begin with `incomplete`, each once, in their order."""
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def _folders(incomplete: str, mark: str) -> list[str]:
    """Return folders that hold the file `mark` and begin with `incomplete`, here or one folder down."""
    return [path.removesuffix(f"/{mark}") for path in _paths(incomplete, (f"*/{mark}", f"*/*/{mark}"))]


def _paths(incomplete: str, patterns: Iterable[str]) -> list[str]:
    """Return paths that match `patterns` below the folder typed so far and begin with `incomplete`."""
    folder = incomplete[: incomplete.rfind("/") + 1]
    with suppress(OSError, ValueError):
        paths = {path for pattern in patterns for path in Path(folder or ".").glob(pattern)}
        return beginning(sorted(folder + path.relative_to(folder or ".").as_posix() for path in paths), incomplete)
    return []
