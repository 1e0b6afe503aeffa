"""Chains of fine-tuning stages: questions are learnt after the documents that they are about. Loads no torch."""

from __future__ import annotations

from pathlib import Path

from skillgraft.data.documents import read_documents, read_questions
from skillgraft.errors import DataError
from skillgraft.recipe import schema


def check_chain(recipe: schema.Recipe, name: str) -> None:
    """Raise `DataError` for an sft stage whose questions are about none of the documents learnt on the way to it.

    Only where every stage on the way is known to be an sft stage of this recipe on documents, and no `about` says what
    the questions are about: such a stage teaches the form of an answer and nothing of the documents, which is hardly
    ever meant.
    """
    stage = recipe.stages[name]
    if not isinstance(stage, schema.SftStage) or stage.questions is None or stage.about is not None:
        return
    learnt, before = set(), recipe.stages.get(stage.from_)
    while isinstance(before, schema.SftStage):
        if before.documents is not None:
            learnt |= _ids(recipe, before.documents, before.limit_documents)
        before = recipe.stages.get(before.from_)
    if before is not None or not learnt:
        return
    asked = _asked(recipe, stage.questions)
    if asked and not asked & learnt:
        raise DataError(
            f"stages.{name}: its questions are about '{min(asked)}'{' and others' if len(asked) > 1 else ''}, and none "
            f"of the {len(learnt)} documents learnt before it, such as '{min(learnt)}'; give the questions on those, "
            "or name the documents that they are about by `about`"
        )


def _ids(recipe: schema.Recipe, data: Path, limit: int | None) -> set[str]:
    """Return the documents behind a data field: those at a path, or those that a synthesize stage renders."""
    source = recipe.stages.get(schema.synthesis_named(data) or "")
    if isinstance(source, schema.SynthesizeStage):
        return _ids(recipe, source.documents, source.limit_documents)
    return {document.source or document.id for document in read_documents(data, limit)}


def _asked(recipe: schema.Recipe, data: Path) -> set[str]:
    """Return the documents that questions are about, those of a synthesize stage being about what it renders."""
    source = recipe.stages.get(schema.synthesis_named(data) or "")
    if isinstance(source, schema.SynthesizeStage):
        return _ids(recipe, source.documents, source.limit_documents)
    return {question.document for question in read_questions(data)}
