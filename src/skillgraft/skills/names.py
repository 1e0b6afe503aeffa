"""Names of skills: those in the local library's folder, and those that come with Skillgraft. Loads little.

A recipe names a skill by its name alone, such as `skill: squad-recall`. The shipped ones lie in the repository's
`skills/`, which `skillgraft/skills/shipped` links to; a wheel carries them there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from skillgraft.errors import StorageError

FOLDER = Path(__file__).parent / "shipped"
RECALL, ANSWER_FORMAT = "squad-recall", "squad-answer-format"
"""The skill, and the control that learnt the form of answers alone."""


def library_home() -> Path:
    """Return the library's folder: `$SKILLGRAFT_LIBRARY`, else `skillgraft/skills` in the user's data directory."""
    configured = os.environ.get("SKILLGRAFT_LIBRARY")
    if configured:
        return Path(configured).expanduser()
    if sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    elif os.name == "nt":
        data = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "skillgraft" / "skills"


def library_names() -> list[str]:
    """Return the names of the library's entries; `StorageError` where it cannot be read."""
    home = library_home()
    try:
        return sorted(entry.name for entry in home.iterdir() if not entry.name.startswith(".") and entry.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(
            f"{home}: the library can't be read ({error.strerror}); set SKILLGRAFT_LIBRARY to another folder"
        ) from error


def shipped_skills(folder: Path = FOLDER) -> dict[str, Path]:
    """Return the directories of the skills that are installed with this package, by name."""
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/skill.json"))}
