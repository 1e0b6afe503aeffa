"""The skill artefact: storage forms, manifest, compatibility, card. Importing loads no torch.

A skill here is a difference of weights with its record, not a prompt file of the kind called an agent skill.
"""

from skillgraft.skills.compatibility import check_compatibility
from skillgraft.skills.forms import FORMS
from skillgraft.skills.manifest import Manifest
from skillgraft.skills.skill import Skill, load_skill

__all__ = ["FORMS", "Manifest", "Skill", "check_compatibility", "load_skill"]
