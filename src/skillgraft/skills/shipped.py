"""The skills that come with Skillgraft: a recipe names one by its name alone, such as `skill: squad-recall`.

They lie in the repository's `skills/`, which `skillgraft/shipped` links to; a wheel carries them there.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "shipped"
RECALL, ANSWER_FORMAT = "squad-recall", "squad-answer-format"
"""The skill, and the control that learnt the form of answers alone."""


def shipped_skills(folder: Path = FOLDER) -> dict[str, Path]:
    """Return the directories of the skills that are installed with this package, by name."""
    return {path.parent.name: path.parent for path in sorted(folder.glob("*/skill.json"))}
