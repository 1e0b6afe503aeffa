"""Plan of a chat: checkpoints checked, and an injection planned, before anything is loaded. Loads no torch.

A chat has no memory: every prompt is sent alone, as in training and evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from skillgraft.checkpoint.default_model import resolve_base
from skillgraft.checkpoint.layout import parameters_of, read_layout
from skillgraft.checkpoint.tokenizer import tokenizer_identity
from skillgraft.errors import RecipeError, SkillgraftError
from skillgraft.support.resources import memory

if TYPE_CHECKING:
    from skillgraft.arithmetic.plan import Plan

Say = Callable[[str], None]


@dataclass(frozen=True)
class ChatModelSpec:
    """One model of a chat: its label, directory, number of parameters, and the injection into it."""

    label: str
    directory: Path
    parameters: int
    injection: Plan | None = None


@dataclass(frozen=True)
class ChatAnswer:
    """One model's answer; `cut` if the token limit ended it."""

    model: str
    text: str
    tokens: int
    seconds: float
    cut: bool = False
    scale: float | None = None


def plan_chat(
    models: Sequence[str],
    target: str | None = None,
    skills: Sequence[tuple[str, float]] = (),
    *,
    allow_other_base: bool = False,
    say: Say = lambda message: None,
) -> list[ChatModelSpec]:
    """Return the models in their order, then the target with the skills, all checked.

    Raises:
        RecipeError: no model, one named twice, or target and skills without each other.
        SkillgraftError: a model or skill that cannot be read, or skills that do not fit the target.
    """
    if (target is None) != (not skills):
        raise RecipeError("--target and --skill belong together: the skill is injected into the target in memory")
    if not models and target is None:
        raise RecipeError("no model is named; expected checkpoints, or --target SFT --skill SKILL")
    for model in models:
        if list(models).count(model) > 1:
            raise RecipeError(f"{model} is named twice; name each model once")
    names = [Path(model).name for model in models]
    labels = names if len(set(names)) == len(names) else list(models)
    specs = [_spec(label, model, say) for label, model in zip(labels, models, strict=True)]
    if target is not None:
        spec = _spec(Path(target).name, target, say)
        plan = _injection(spec.directory, skills, allow_other_base, say)
        named = " + ".join(_named(Path(name).name, weight) for name, weight in skills)
        specs.append(replace(spec, label=f"{spec.label} + {named}", injection=plan))
    return specs


def _spec(label: str, model: str, say: Say) -> ChatModelSpec:
    directory = resolve_base(model, say)
    layout = read_layout(directory)
    tokenizer_identity(directory)
    return ChatModelSpec(label, directory, parameters_of(layout))


def _injection(directory: Path, skills: Sequence[tuple[str, float]], allow_other_base: bool, say: Say) -> Plan:
    from skillgraft.arithmetic.injection.inject import plan_injection

    plan = plan_injection(directory, list(skills), allow_other_base=allow_other_base)
    for remark in plan.remarks:
        say(f"remark: {remark}")
    return plan


def _named(name: str, scale: float) -> str:
    return name if scale == 1 else f"{scale:g} · {name}"


def weights_bytes(specs: Sequence[ChatModelSpec], bytes_per_parameter: int) -> tuple[int, int | None]:
    """Return the bytes that all weights take in memory, and those that are free now (None if unknown).

    Raises `SkillgraftError` where they are more than are free.
    """
    needed = sum(spec.parameters for spec in specs) * bytes_per_parameter
    free = memory().available
    if free is not None and needed > free:
        raise SkillgraftError(
            f"{len(specs)} models take {size(needed)} of memory, {size(free)} are free; "
            "name fewer of them, or stop something else"
        )
    return needed, free


def size(count: int) -> str:
    """Return bytes as `270 MB` or `3.2 GB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
