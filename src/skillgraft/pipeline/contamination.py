"""Contamination check: no model may learn from synthetic documents that hold a question which it is asked. No torch.

A `synthesize` stage removes renderings that come near to the questions named in its `held_out`. Here the recipe's own
evaluations decide what is held out, so that a forgotten `held_out` is found: the whole text of no evaluated question,
up to case, punctuation and articles, may stand in a rendering that a model was trained on which answers it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from skillgraft.data.documents import read_documents
from skillgraft.data.ngram_overlap import Leakage
from skillgraft.data.tables import read_records
from skillgraft.data.tasks import Question, read_questions
from skillgraft.errors import DataError
from skillgraft.settings.base import DataPath, sites, stage_named
from skillgraft.stages.planned import PlannedStage
from skillgraft.stages.row_labels import ancestors

WHOLE = 1.0
"""Overlap of a text that holds a question's every sequence of words."""


def check_contamination(stages: Sequence[PlannedStage], reader: PlannedStage) -> None:
    """Raise where what `reader` is trained on holds a question that a model which comes of it is asked.

    The stages that `reader` reads must be finished. Documents as they were given are not renderings, and neither are
    files of questions: what they hold is the user's choice.

    Raises:
        DataError: the first such question, with the rendering and what to do.
    """
    learnt = (path for _, marker, path in sites(reader.settings, DataPath) if marker.use == "learn")
    sources = [source for path in learnt if (source := stage_named(path)) is not None]
    by_name = {stage.name: stage for stage in stages}
    for evaluation in stages if sources else ():
        questions = _asked(evaluation.settings)
        if not questions or reader.name not in ancestors(by_name, [evaluation.name]):
            continue
        for source in sources:
            leaks = Leakage(questions, WHOLE)
            given_away = [
                (where, number)
                for where, text in _renderings(reader.inputs[source])
                for number in leaks.gives_away(where, text)
            ]
            if given_away:
                where, number = given_away[0]
                raise DataError(
                    f"stages.{reader.name}: {len({n for _, n in given_away})} of the {len(questions)} questions that "
                    f"'{evaluation.name}' asks stand in the renderings of '{source}', the first, "
                    f"'{questions[number].question}', in '{where}'; a synthesize stage leaves out what its "
                    f"held_out names: {evaluation.settings.questions}"
                )


def _asked(settings: Any) -> list[Question]:
    """Return the questions that a table asks; none where they are renderings themselves."""
    path = next((path for _, marker, path in sites(settings, DataPath) if marker.use == "ask"), None)
    if path is None or stage_named(path) is not None:
        return []
    about = settings.documents
    if about is None or stage_named(about) is not None:
        return read_questions(path)
    return read_questions(path, read_documents(about, settings.limit_documents))


def _renderings(made: Path) -> Iterator[tuple[str, str]]:
    """Yield id and text of everything in a data stage's folder that is no document as it was given."""
    for name in ("documents.jsonl", "questions.jsonl"):
        file = made / name
        for _, record in read_records(file) if file.is_file() else ():
            if record.get("style") != "original":
                answers = " ".join(record.get("answers", []))
                yield record["id"], f"{record['question']} {answers}" if "question" in record else record["text"]
