"""The stage kind `inject`: θ = θ_target + λ·v, of one skill or of several merged ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from skillgraft.checkpoint.layout import read_layout
from skillgraft.errors import RecipeError
from skillgraft.settings.base import BASE, Finite, Ordered, Ref, Settings
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.costs import Costing, Needs
from skillgraft.stages.kind import StageKind, Stages
from skillgraft.stages.planned import Preflight
from skillgraft.stages.reading import origins
from skillgraft.stages.row_labels import RowLabel, injected_label


class ScaledSkill(Settings):
    """One of several skills."""

    skill: Annotated[str, Ref("skill")] = Field(description="stage, skill directory or name")
    scale: Finite = Field(1.0, description="λ of this skill")


class InjectStage(Settings):
    """θ = θ_target + λ·v; v is one skill, or what a merging method makes of several."""

    kind: Literal["inject"] = Field(description="add a skill to a checkpoint")
    target: Annotated[str, Ref("checkpoint")] = Field(
        description="stage, 'base' or checkpoint directory that receives the skill"
    )
    skill: Annotated[str | None, Ref("skill")] = Field(
        None, description="stage, skill directory or name of a skill, such as squad-recall"
    )
    skills: list[ScaledSkill] = Field([], description="several, each with its scale, instead of one")
    scale: Finite = Field(1.0, description="λ")
    scales: Annotated[dict[str, Finite] | None, Ordered()] = Field(
        None, min_length=1, description="λ by pattern of tensor names, and 'default' (1): times scale; the first counts"
    )
    method: str = Field("task_arithmetic", description="a merging method of vectors: task_arithmetic is the sum")
    parameters: dict[str, Any] = Field({}, description="the method's own, as in a merge recipe")

    @property
    def injected(self) -> list[tuple[str, float]]:
        """Every skill with its scale."""
        return [(each.skill, each.scale) for each in self.skills] or [(str(self.skill), 1.0)]


def check(name: str, settings: InjectStage) -> None:
    """Raise for a stage that names no skill, or one and several, or a method that it can't take."""
    if (settings.skill is None) != bool(settings.skills):
        got = "both are given" if settings.skills else "neither is given"
        raise RecipeError(f"stages.{name}: {got}, skill or skills; inject needs one of them")
    if settings.scales is not None and (settings.skills or settings.method != "task_arithmetic"):
        raise RecipeError(f"stages.{name}.scales: λ by pattern is for one skill, added as it is; leave scales out")
    if settings.method == "task_arithmetic" and not settings.parameters:
        return
    from skillgraft.arithmetic.merge_recipe import check_vector_method, parse_merge_recipe
    from skillgraft.arithmetic.plan import check_number

    operands = [{"skill": skill, "weight": scale} for skill, scale in settings.injected]
    merge = {
        "method": settings.method,
        "base": settings.target,
        "operands": operands,
        "parameters": settings.parameters,
    }
    check_vector_method(settings.method, f"stages.{name}: ")
    check_number(parse_merge_recipe(merge, f"stages.{name}"))


def read(settings: InjectStage) -> dict[str, str]:
    """Return the version of the extension that the merging method comes from."""
    return origins(method=("methods", settings.method))


def run(settings: InjectStage, context: Context) -> StageResult:
    """Write θ_target + λ·v."""
    from skillgraft.arithmetic import inject

    report = inject(
        context.inputs[settings.target],
        [(context.inputs[skill], scale) for skill, scale in settings.injected],
        context.out,
        scale=settings.scale,
        scales=settings.scales,
        method=settings.method,
        parameters=settings.parameters,
        progress=context.progress,
    )
    return StageResult({"scale": settings.scale, **{key: value for key, value in report.items() if key != "tensors"}})


def preflight(given: Preflight) -> Iterable[str]:
    """Raise for a skill from elsewhere that does not fit the target, and for λ of tensors that are not there."""
    settings = given.planned.settings
    check_injection(given, settings.target, [skill for skill, _ in settings.injected], settings.scales or {})
    return ()


def check_injection(given: Preflight, target: str, skills: Sequence[str], scales: Mapping[str, float]) -> None:
    """Raise where skills from elsewhere do not fit the checkpoint that `target` descends from.

    A skill that is still to be made has no other tensors than what it is added to.
    """
    from skillgraft.arithmetic.plan import check_patterns
    from skillgraft.skills import check_compatibility, load_skill

    if (root := given.root(target)) is None:
        return
    layout = read_layout(root)
    names = list(layout.tensors)
    for skill in (skill for skill in skills if skill not in given.stages):
        loaded = load_skill(given.planned.inputs[skill])
        check_compatibility(layout, loaded)
        names = list(loaded.names)
    check_patterns("scales", scales, names)


def needs(settings: InjectStage, costing: Costing) -> Needs:
    """Estimate the cost: one pass over the weights, which are written again."""
    return Needs(10 * costing.parameters, 2**30, costing.parameters * 4)


def label(stages: Stages, model: str) -> RowLabel:
    """Label the model by what was injected into what."""
    settings = stages[model].settings
    skills = [skill for skill, _ in settings.injected]
    by_pattern = " by pattern" if settings.scales is not None else ""
    one = f"λ = {settings.scale:g}{by_pattern}"
    scale = one if len(skills) == 1 else f"{len(skills)} skills, λ = {settings.scale:g}"
    return injected_label(stages, skills, scale, settings.target != BASE)


INJECT = StageKind(
    settings=InjectStage,
    makes="checkpoint",
    run=run,
    version=2,
    trained_from="target",
    check=check,
    read=read,
    preflight=preflight,
    needs=needs,
    label=label,
)
