"""Preflight checks: what base, data, machine and environment rule out is refused before anything runs.

Mistakes within a recipe are found when it is loaded, and by its data when it is planned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from skillgraft.checkpoint.layout import read_layout
from skillgraft.checkpoint.tokenizer import tokenizer_identity
from skillgraft.data.documents import documents_table, read_documents
from skillgraft.data.passages import passages
from skillgraft.data.text_files import DOCUMENT_KINDS, passed_over
from skillgraft.errors import naming
from skillgraft.models.chat_template import NO_ARGUMENTS, with_template_arguments
from skillgraft.settings.base import BASE, Chooses, DataPath, Ref, sites
from skillgraft.stages.costs import written
from skillgraft.stages.planned import PlannedStage, Preflight


def check_plan(stages: Sequence[PlannedStage], processes: int = 1) -> list[str]:
    """Return remarks on what is odd and no mistake; raise `SkillgraftError` for the first stage that cannot run.

    `processes` train together, as far as a kind of stage allows.
    """
    waiting = [stage for stage in stages if not stage.cached]
    for planned in waiting:
        with naming(f"stages.{planned.name}"):
            _check_inputs(planned, stages)
    remarks = [line for planned in waiting for line in check_stage(planned, stages, processes)]
    remarks += [line for planned in stages for line in _over_the_limit(planned)]
    return list(dict.fromkeys([*remarks, *(line for planned in stages for line in _passed_over(planned))]))


def check_stage(planned: PlannedStage, stages: Sequence[PlannedStage], processes: int = 1) -> list[str]:
    """Return a stage's own remarks; raise `SkillgraftError` for what its kind refuses."""
    arguments = getattr(planned.settings, "chat_template_kwargs", NO_ARGUMENTS)
    with naming(f"stages.{planned.name}"), with_template_arguments(arguments):
        return list(planned.kind.preflight(Preflight(planned, {stage.name: stage for stage in stages}, processes)))


def _check_inputs(planned: PlannedStage, stages: Sequence[PlannedStage]) -> None:
    """Raise for a checkpoint or skill from elsewhere that is broken."""
    from skillgraft.skills import load_skill

    made_here = {stage.name for stage in stages}
    for _, marker, reference in sites(planned.settings, Ref):
        if marker.among is not None or marker.adapter or reference in made_here or reference == BASE:
            continue
        directory = planned.inputs[reference]
        if marker.makes == "skill":
            load_skill(directory)
        else:
            read_layout(directory)
            tokenizer_identity(directory)


def _passed_over(planned: PlannedStage) -> Iterator[str]:
    """Yield a line for each folder of documents in which there are files that are none."""
    for _, marker, value in sites(planned.settings, DataPath):
        folder = written(value, planned.inputs) if marker.makes == "documents" else None
        others = passed_over(folder) if folder is not None and documents_table(folder) is None else ""
        if others:
            yield f"documents: files in {folder} are passed over: {others}; {DOCUMENT_KINDS} are read"


def _over_the_limit(planned: PlannedStage) -> Iterator[str]:
    """Yield a line for a limit that is more than there is."""
    for field, marker, limit in sites(planned.settings, Chooses):
        paths = (written(getattr(planned.settings, each), planned.inputs) for each in marker.of)
        path = next((path for path in paths if path is not None), None)
        if not isinstance(limit, int) or path is None:
            continue
        documents = read_documents(path)
        count = len(passages(documents)) if marker.passages else len(documents)
        if count < limit:
            yield f"stages.{planned.name}.{field}: {limit} is more than the {count} that are there; all are taken"
