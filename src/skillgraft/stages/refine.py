"""The stage kind `refine`: iterative refinement, an entry that stands for ordinary stages. Loads no torch.

Iterative refinement is PaST's Algorithm 1 (arXiv 2601.11258): with v₀ = 0, for each of K disjoint slices D_k

    θ_sft ← SFT(θ_base, D_k),  θ_init = θ_sft + v_{k−1},  θ_rl ← RL(θ_init, D_k),  v_k = θ_rl − θ_sft

An entry `skill` with two rounds becomes `skill_sft_1`, `skill_rl_1`, `skill_v_1`, `skill_sft_2`, `skill_init_2`,
`skill_rl_2` and `skill`, which is v₂. Each is addressed as any other stage, so that a run resumes, and shares what
another recipe has done: with one round they are plain PaST's, and the first rounds of a longer refinement are those of
a shorter one on the same slices.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from skillgraft.errors import RecipeError
from skillgraft.settings.base import BASE, Chooses, DataPath, Finite, Ref, Settings
from skillgraft.stages.kind import StageKind


class RefineStage(Settings):
    """Iterative refinement: several rounds of SFT and RL on disjoint slices, the skill vector carried over."""

    kind: Literal["refine"] = Field(description="learn a skill in rounds: stands for the stages of each round")
    from_: Annotated[str, Ref("checkpoint")] = Field(
        BASE, alias="from", description="stage, 'base' or checkpoint that SFT starts from in every round"
    )
    documents: Annotated[Path, DataPath("documents", use="learn")] = Field(
        description="what is cut into one slice a round, by document, in file order"
    )
    questions: Annotated[Path, DataPath("questions", use="learn")] = Field(
        description="table (.jsonl, .csv, …) with document, question, answers: RL asks those on the round's slice"
    )
    limit_documents: Annotated[int | None, Chooses()] = Field(
        None, ge=1, description="limit to the first N documents, in all rounds"
    )
    rounds: int = Field(2, ge=1, le=100, description="K, the number of rounds and of slices")
    scale: Finite = Field(1.0, description="λ at which a round starts from v")
    sft: dict[str, Any] = Field({}, description="settings of every round's sft stage: trainer, adapt")
    rl: dict[str, Any] = Field({}, description="settings of every round's rl stage: trainer, adapt, reward, algorithm")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="what the last round's skill is stored in")
    domain: str | None = Field(None, description="what the skill was learnt on, for its manifest")
    license: str | None = Field(None, description="SPDX identifier, for its manifest")


OWN = ("kind", "from", "documents", "questions", "limit_documents", "part")
"""Settings of the rounds' stages that the entry itself decides."""


def rounds_of(name: str, stage: RefineStage) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the stages that the entry `name` stands for: name -> (where its settings stand, the stage's mapping).

    Raises:
        RecipeError: `sft:` or `rl:` hold a setting that the entry decides.
    """
    for part in ("sft", "rl"):
        for key in getattr(stage, part):
            if key in OWN:
                raise RecipeError(f"stages.{name}.{part}.{key}: the refine stage decides it; set stages.{name}.{key}")
    data: dict[str, Any] = {"documents": stage.documents}
    if stage.limit_documents is not None:
        data["limit_documents"] = stage.limit_documents
    where = f"stages.{name}"
    stages: dict[str, tuple[str, dict[str, Any]]] = {}
    for number in range(1, stage.rounds + 1):
        if stage.rounds > 1:
            data["part"] = f"{number}/{stage.rounds}"
        sft, rl, start = f"{name}_sft_{number}", f"{name}_rl_{number}", f"{name}_sft_{number}"
        last = number == stage.rounds
        stages[sft] = (f"{where}.sft", {"kind": "sft", "from": stage.from_, **data, **stage.sft})
        if number > 1:
            start = f"{name}_init_{number}"
            before = {"skill": f"{name}_v_{number - 1}", "scale": stage.scale}
            stages[start] = (where, {"kind": "inject", "target": sft, **before})
        stages[rl] = (f"{where}.rl", {"kind": "rl", "from": start, "questions": stage.questions, **data, **stage.rl})
        about = {"domain": stage.domain, "license": stage.license}
        skill = {"kind": "extract", "rl": rl, "sft": sft, **about, **({"dtype": stage.dtype} if last else {})}
        stages[name if last else f"{name}_v_{number}"] = (where, {k: v for k, v in skill.items() if v is not None})
    return stages


REFINE = StageKind(settings=RefineStage, makes="skill", expand=rounds_of)
