"""What a plan can be told before anything runs: mistakes that need the base, the data or the environment to be seen.

What a recipe says wrongly by itself is found when it is loaded (`config`), and by its data when it is planned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skillgraft.checkpoint.layout import context_of, read_config, read_layout
from skillgraft.checkpoint.tokenizer import tokenizer_identity
from skillgraft.data.documents import read_documents, read_questions
from skillgraft.data.passages import passages
from skillgraft.data.synthesis.endpoint_key import read_key
from skillgraft.errors import naming
from skillgraft.pipeline.plan import PlannedStage, made
from skillgraft.recipe import schema
from skillgraft.rl_settings import endpoint_of
from skillgraft.settings.evaluation import EvalRow, RetentionSettings, check_window


def check_plan(stages: Sequence[PlannedStage], processes: int = 1) -> list[str]:
    """Return remarks on what is odd and no mistake; raise `SkillgraftError` for the first stage that cannot run.

    `processes` train together, as far as a kind of stage allows.
    """
    check_skills(stages)
    check_endpoints(stages)
    check_trainers(stages, processes)
    check_contexts(stages)
    return remarks(stages)


def check_trainers(stages: Sequence[PlannedStage], processes: int = 1) -> None:
    """Raise for what TRL, PEFT or the rewards refuse of a stage's settings, and for too little replay text."""
    waiting = [stage for stage in stages if not stage.cached and stage.stage.kind in schema.TRAINS]
    if not waiting:
        return
    from skillgraft.train.check import check_stage

    for planned in waiting:
        with naming(f"stages.{planned.name}"):
            check_stage(planned, _root(stages, planned, planned.stage.from_), processes)


def check_endpoints(stages: Sequence[PlannedStage]) -> None:
    """Raise for a key that the environment does not have."""
    for planned in stages:
        if (endpoint := endpoint_of(planned.stage)) is not None and not planned.cached:
            with naming(f"stages.{planned.name}"):
                read_key(endpoint.key_variable)


def check_skills(stages: Sequence[PlannedStage]) -> None:
    """Raise for a checkpoint or skill from elsewhere that is broken, or a skill that does not fit its target."""
    from skillgraft.skills import load_skill

    made_here = {stage.name for stage in stages}
    for planned in stages:
        if planned.cached:
            continue
        with naming(f"stages.{planned.name}"):
            for field, reference in schema.references(planned.stage):
                if reference in made_here or reference == schema.BASE or field == "rl":
                    continue
                if field in ("skill", "skills"):
                    load_skill(planned.inputs[reference])
                else:
                    read_layout(planned.inputs[reference])
                    tokenizer_identity(planned.inputs[reference])
            if planned.stage.kind in {"inject", "single_passage"}:
                _check_injection(planned, _root(stages, planned, planned.stage.target), made_here)


def _check_injection(planned: PlannedStage, root: Path | None, made_here: set[str]) -> None:
    """Raise for a skill from elsewhere that does not fit what it goes into, and for λ of tensors that are not there.

    A skill that is still to be made has no other tensors than what it goes into.
    """
    from skillgraft.arithmetic.plan import check_patterns
    from skillgraft.skills import check_compatibility, load_skill

    if root is None:
        return
    layout = read_layout(root)
    names = list(layout.tensors)
    for skill in (skill for skill, _ in planned.stage.injected if skill not in made_here):
        loaded = load_skill(planned.inputs[skill])
        check_compatibility(layout, loaded)
        names = list(loaded.names)
    check_patterns("scales", getattr(planned.stage, "scales", None) or {}, names)


def check_contexts(stages: Sequence[PlannedStage]) -> None:
    """Raise for what an eval stage asks a model to see and is more than it can."""
    for planned in stages:
        stage = planned.stage
        if stage.kind != "eval" or planned.cached:
            continue
        with naming(f"stages.{planned.name}"):
            for model in stage.models if isinstance(stage.retention, RetentionSettings) else ():
                if root := _root(stages, planned, model):
                    check_window("retention", stage.retention, model, context_of(read_config(root)))
            for row in stage.rows:
                if row.context == "bm25" and (root := _root(stages, planned, row.model)):
                    _check_found(planned, row, root)


def _check_found(planned: PlannedStage, row: EvalRow, root: Path) -> None:
    """Raise where what BM25 finds does not fit: looked up only where chunks of full length would not."""
    stage, context = planned.stage, context_of(read_config(root))
    documents, questions = (made(path, planned.inputs) for path in (stage.documents, stage.questions))
    longest = row.top_k * row.chunk_tokens + stage.max_new_tokens
    if context is None or longest <= context or documents is None or questions is None:
        return
    from skillgraft.data.slices import choose
    from skillgraft.evals.rows import Asked, prompt_sizes, row_prompts
    from skillgraft.train.common import load_tokenizer

    every, tokenizer = read_documents(documents), load_tokenizer(root)
    chosen = read_questions(questions, choose(every, stage.limit_documents, stage.part))
    asked = Asked(stage, chosen, every, 0)
    prompt_sizes(asked, row, row_prompts(asked, row, tokenizer)[0], tokenizer, context)


def remarks(stages: Sequence[PlannedStage]) -> list[str]:
    """Return a line for each stage whose limit_documents is more than there is."""
    return [line for planned in stages for line in _over_the_limit(planned)]


def _over_the_limit(planned: PlannedStage) -> Iterator[str]:
    stage: Any = planned.stage
    limit = getattr(stage, "limit_documents", None)
    path = made(getattr(stage, "documents", None) or getattr(stage, "about", None), planned.inputs)
    if limit is None or path is None:
        return
    documents = read_documents(path)
    count = len(passages(documents)) if stage.kind == "single_passage" else len(documents)
    if count < limit:
        yield f"stages.{planned.name}.limit_documents: {limit} is more than the {count} that are there; all are taken"


def _root(stages: Sequence[PlannedStage], planned: PlannedStage, reference: str) -> Path | None:
    """Return the directory that a chain of training and injection starts from, None where it is no such chain."""
    by_name: Mapping[str, PlannedStage] = {stage.name: stage for stage in stages}
    while reference in by_name:
        planned = by_name[reference]
        if planned.stage.kind in schema.GROWS_FROM:
            reference = getattr(planned.stage, schema.GROWS_FROM[planned.stage.kind])
        else:
            return None
    return planned.inputs[reference]
