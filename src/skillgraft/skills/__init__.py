"""The skill artifact: storage forms, manifest, compatibility, card. Each name is imported when it is first used.

A skill here is a difference of weights with its record, not a prompt file of the kind called an agent skill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from skillgraft.support.lazy import names_of

if TYPE_CHECKING:
    from skillgraft.skills.compatibility import check_compatibility
    from skillgraft.skills.forms import FORMS
    from skillgraft.skills.manifest import Manifest
    from skillgraft.skills.skill import Skill, load_skill

__all__ = ["FORMS", "Manifest", "Skill", "check_compatibility", "load_skill"]

__getattr__ = names_of(
    __name__,
    {
        "FORMS": "forms",
        "Manifest": "manifest",
        "Skill": "skill",
        "check_compatibility": "compatibility",
        "load_skill": "skill",
    },
)
