"""Stages: one kind a file, and the one dict of kinds. A new kind is a file here and a line in `KINDS`. Loads no torch.

A stage sees its settings, the directories it refers to and a random seed, nothing else, so that it can run in another
process or on another machine.
"""

from __future__ import annotations

from skillgraft.stages.distill import DISTILL
from skillgraft.stages.eval import EVAL
from skillgraft.stages.extract import EXTRACT
from skillgraft.stages.inject import INJECT
from skillgraft.stages.kind import StageKind
from skillgraft.stages.mix import MIX
from skillgraft.stages.random_vector import RANDOM_VECTOR
from skillgraft.stages.refine import REFINE
from skillgraft.stages.rl import RL
from skillgraft.stages.self_edit import SELF_EDIT
from skillgraft.stages.sft import SFT
from skillgraft.stages.single_passage import SINGLE_PASSAGE
from skillgraft.stages.synthesize import SYNTHESIZE
from skillgraft.support.extensions import with_extensions

BUILTIN: dict[str, StageKind] = {
    "sft": SFT,
    "rl": RL,
    "extract": EXTRACT,
    "random_vector": RANDOM_VECTOR,
    "inject": INJECT,
    "eval": EVAL,
    "synthesize": SYNTHESIZE,
    "refine": REFINE,
    "single_passage": SINGLE_PASSAGE,
    "distill": DISTILL,
    "mix": MIX,
    "self_edit": SELF_EDIT,
}

KINDS = with_extensions("stages", BUILTIN)
"""Every kind of stage by its name, those of installed extensions included."""
