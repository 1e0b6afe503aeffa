"""Whether what a recipe trains on gives away what it evaluates: asked before every stage that reads renderings.

A `synthesize` stage removes renderings that come near to the questions named in its `held_out`. Here the recipe's own
evaluations decide what is held out, so that a forgotten `held_out` is found: the whole text of no evaluated question,
up to case, punctuation and articles, may stand in a rendering that a model was trained on which answers it. Loads no
torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from skillgraft.data.documents import Question, read_documents, read_questions, read_records
from skillgraft.data.ngram_overlap import Leakage
from skillgraft.errors import DataError
from skillgraft.pipeline.plan import PlannedStage
from skillgraft.recipe import schema

WHOLE = 1.0
"""Overlap of a text that holds a question's every sequence of words."""


def check_leaks(stages: Sequence[PlannedStage], reader: PlannedStage) -> None:
    """Raise where renderings that `reader` is trained on hold a question that a model which comes of it is asked.

    The stages that `reader` reads must be finished. Documents as they were given are not renderings, and neither are
    files of questions: what they hold is the user's choice.

    Raises:
        DataError: the first such question, with the rendering and what to do.
    """
    sources = [named for field, named in schema.references(reader.stage) if field in schema.DATA]
    if not sources or reader.stage.kind not in schema.TRAINS:
        return
    for evaluation in (stage for stage in stages if stage.stage.kind in schema.ASKS):
        if reader.name not in _made_of(stages, evaluation):
            continue
        asked = _asked(evaluation)
        for source in sources if asked else ():
            leaks = Leakage(asked, WHOLE)
            given_away = [
                (where, number)
                for where, text in _renderings(reader.inputs[source])
                for number in leaks.gives_away(where, text)
            ]
            if given_away:
                where, number = given_away[0]
                raise DataError(
                    f"stages.{reader.name}: {len({n for _, n in given_away})} of the {len(asked)} questions that "
                    f"'{evaluation.name}' asks stand in the renderings of '{source}', the first, "
                    f"'{asked[number].question}', in '{where}'; a synthesize stage leaves out what its held_out names: "
                    f"{evaluation.stage.questions}"
                )


def _made_of(stages: Sequence[PlannedStage], evaluation: PlannedStage) -> set[str]:
    """Return the names of the stages that an evaluation's models come of, and its own."""
    by_name = {stage.name: stage for stage in stages}
    found, left = {evaluation.name}, [evaluation.name]
    while left:
        for _, named in schema.references(by_name[left.pop()].stage):
            if named in by_name and named not in found:
                found.add(named)
                left.append(named)
    return found


def _asked(evaluation: PlannedStage) -> list[Question]:
    """Return the questions of an eval stage; none where they are renderings themselves."""
    stage = evaluation.stage
    if schema.synthesis_named(stage.questions) is not None:
        return []
    read = stage.documents is not None and schema.synthesis_named(stage.documents) is None
    return read_questions(stage.questions, read_documents(stage.documents, stage.limit_documents) if read else None)


def _renderings(made: Path) -> Iterator[tuple[str, str]]:
    """Yield id and text of everything in a data stage's folder that is no document as it was given."""
    for name in ("documents.jsonl", "questions.jsonl"):
        file = made / name
        for _, record in read_records(file) if file.is_file() else ():
            if record.get("style") != "original":
                answers = " ".join(record.get("answers", []))
                yield record["id"], f"{record['question']} {answers}" if "question" in record else record["text"]
