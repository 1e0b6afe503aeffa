"""Skillgraft: learn a skill once with RL, keep it as a vector, graft it onto models fine-tuned on something new.

    import skillgraft

    skillgraft.extract(rl="runs/past-squad/rl_source", sft="runs/past-squad/sft_source", out="skills/mine")
    skillgraft.inject(target="my-sft-model", skill="skills/mine", out="my-grafted-model", scale=1.0)
    skillgraft.merge("merge.yaml", out="merged")         # or a mapping: method, base, operands
    skillgraft.compare(["one", "two"], base="base")      # norms, cosines, signs, beside what chance gives
    skill = skillgraft.load_skill("skills/mine")
    skillgraft.pack(skill, "small", "packed", budget=1_000_000)
    skill.delta("model.layers.0.mlp.up_proj.weight")     # fp32, (1536, 576)
    result = skillgraft.run("recipes/quickstart.yaml")

The method is Parametric Skill Transfer (arXiv 2601.11258): v = θ_RL − θ_SFT, θ = θ_target + λ·v. Importing the package
loads no torch; each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before anything imports the hub's client, which reads it once

if TYPE_CHECKING:
    from skillgraft.arithmetic import extract, inject, merge
    from skillgraft.compression import pack
    from skillgraft.geometry import compare
    from skillgraft.run import run
    from skillgraft.skills import load_skill

__all__ = ["compare", "extract", "inject", "load_skill", "merge", "pack", "run"]

_HOME = {
    "compare": "skillgraft.geometry",
    "extract": "skillgraft.arithmetic",
    "inject": "skillgraft.arithmetic",
    "load_skill": "skillgraft.skills",
    "merge": "skillgraft.arithmetic",
    "pack": "skillgraft.compression",
    "run": "skillgraft.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'skillgraft' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


class _Package(ModuleType):
    """Keeps the name `run` for the function when the module `skillgraft.run` is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
