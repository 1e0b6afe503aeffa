"""The stage kind `sft`: supervised fine-tuning on documents, or on questions with their answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from skillgraft.checkpoint.layout import context_of, read_config
from skillgraft.data.documents import Document, read_documents
from skillgraft.data.replay import read_replay
from skillgraft.data.slices import choose
from skillgraft.data.tasks import Question, read_questions
from skillgraft.errors import DataError, RecipeError
from skillgraft.settings.base import (
    ADAPT,
    AdapterSettings,
    Chooses,
    DataPath,
    PromptSettings,
    Ref,
    Slice,
    TrainerArguments,
    stage_named,
)
from skillgraft.settings.text import WHOLE, ReplaySettings, TextSettings, check_text
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.costs import QUESTION_TOKENS, Costing, Needs, text_tokens, training_needs, written
from skillgraft.stages.kind import StageKind, Stages
from skillgraft.stages.planned import Preflight
from skillgraft.stages.reading import adapter_origin, digests, documents_of, questions_of
from skillgraft.stages.row_labels import RowLabel, label_of
from skillgraft.stages.training import check_adaptation, renamed_curve, running_models, trained_result, training
from skillgraft.support.digest import digest


class SftStage(PromptSettings):
    """Supervised fine-tuning on documents, or on questions with answers; full, or with an adapter by `adapt:`."""

    kind: Literal["sft"] = Field(description="fine-tune a checkpoint")
    from_: Annotated[str, Ref("checkpoint")] = Field(
        alias="from", description="stage, 'base' or checkpoint directory to start from"
    )
    documents: Annotated[Path | None, DataPath("documents", use="learn")] = Field(
        None,
        description="folder of text files, or a table (.jsonl, .csv, …) with id, title, text",
    )
    limit_documents: Annotated[int | None, Chooses(("documents", "about"))] = Field(
        None, ge=1, description="limit to the first N of documents, or of about"
    )
    part: Annotated[Slice | None, Chooses()] = Field(
        None, description="train on one of several disjoint parts of the documents: 1/2"
    )
    questions: Annotated[Path | None, DataPath("questions", use="learn")] = Field(
        None, description="table (.jsonl, .csv, …) with document, question, answers: train on the answers"
    )
    about: Annotated[Path | None, DataPath()] = Field(None, description="train on questions about these documents only")
    answers: Literal["gold", "shuffled"] = Field("gold", description="shuffled: the answer-format control")
    text: TextSettings = Field(WHOLE, description="how documents become training examples: chunks, overlap, title")
    replay: ReplaySettings | None = Field(None, description="general text to train on beside the stage's own data")
    adapt: AdapterSettings = Field(None, description=ADAPT)
    trainer: TrainerArguments = Field({}, description="arguments of TRL's SFTConfig")


def check(name: str, settings: SftStage) -> None:
    """Raise for a stage without data or with both kinds, and for settings of the kind that it lacks."""
    if settings.documents is None and settings.questions is None:
        raise RecipeError(f"stages.{name}: neither documents nor questions are given; sft needs one of them")
    if settings.documents is not None and settings.questions is not None:
        raise RecipeError(
            f"stages.{name}: documents and questions are both given; make two sft stages of it, the second one "
            "`from` the first (`about` keeps the questions about some documents only)"
        )
    needs_questions = (("answers: shuffled", settings.answers == "shuffled"), ("about", settings.about is not None))
    for field, is_set in needs_questions:
        if is_set and settings.questions is None:
            raise RecipeError(f"stages.{name}: {field} needs questions")
    if settings.text != WHOLE and settings.documents is None:
        raise RecipeError(f"stages.{name}: text says how documents become rows; it needs documents")


def read(settings: SftStage) -> dict[str, str]:
    """Return the digests of documents, questions and replay text."""
    every, documents = documents_of(settings)
    about = read_documents(settings.about, settings.limit_documents) if settings.about else documents
    data = digests(documents, questions_of(settings, every, about))
    if settings.replay is not None:
        data["replay"] = digest(read_replay(settings.replay.text))
    return data | adapter_origin(settings)


def training_data(settings: SftStage, inputs: Mapping[str, Path]) -> tuple[list[Document], list[Question]]:
    """Return what the stage trains on; nothing where a stage has yet to write it."""
    documents_path, questions_path = (written(path, inputs) for path in (settings.documents, settings.questions))
    documents = (
        choose(read_documents(documents_path), settings.limit_documents, settings.part) if documents_path else []
    )
    about = read_documents(settings.about, settings.limit_documents) if settings.about else None
    return documents, read_questions(questions_path, about) if questions_path else []


@running_models
def run(settings: SftStage, context: Context) -> StageResult:
    """Fine-tune on documents, or on questions with their answers."""
    from skillgraft.train.sft import train_sft

    documents, questions = training_data(settings, context.inputs)
    with training(settings, context) as arguments:
        trained = train_sft(
            documents=documents,
            questions=questions,
            shuffle_answers=settings.answers == "shuffled",
            text=settings.text,
            replay=(read_replay(settings.replay.text), settings.replay.ratio) if settings.replay else ((), 0.0),
            **arguments,
        )
    details = {
        "documents": len(documents),
        "questions": len(questions),
        "replayed_tokens": trained.replayed_tokens,
    }
    names = {name: name for name in ("step", "loss", "learning_rate", "mean_token_accuracy")}
    curve = renamed_curve((point for point in trained.curve if "loss" in point), names)
    return trained_result(trained, details, curve, ["loss"])


def preflight(given: Preflight) -> Iterable[str]:
    """Raise for what the trainer refuses, for too little replay text, and for questions about nothing learnt before."""
    settings, start = given.planned.settings, given.root(given.planned.settings.from_)
    check_chain(given.stages, settings)
    from skillgraft.models.loading import load_tokenizer
    from skillgraft.train.data_parallel import check_shares
    from skillgraft.train.plan_checks import check_learnable
    from skillgraft.train.sft import sft_arguments

    check_adaptation(settings.trainer, start, settings.adapt)
    arguments = sft_arguments(settings.trainer, Path("unused"), 0)
    check_text(settings.text, arguments.max_length)
    check_shares(arguments, given.processes)
    documents, questions = training_data(settings, given.planned.inputs)
    if start is not None and (documents or questions):
        replay = (read_replay(settings.replay.text), settings.replay.ratio) if settings.replay else ((), 0.0)
        tokenizer, context = load_tokenizer(start), context_of(read_config(start))
        check_learnable(tokenizer, documents, questions, arguments, context, text=settings.text, replay=replay)
    return ()


def check_chain(stages: Stages, settings: SftStage) -> None:
    """Raise `DataError` for questions that are about none of the documents learnt on the way to the stage.

    Only where every stage on the way is known to be an sft stage of this recipe on documents, and no `about` says what
    the questions are about: such a stage teaches the form of an answer and nothing of the documents, which is hardly
    ever meant.
    """
    if settings.questions is None or settings.about is not None:
        return
    learnt: set[str] = set()
    start = settings.from_
    while start in stages and isinstance(before := stages[start].settings, SftStage):
        if before.documents is not None:
            learnt |= _document_ids(stages, before.documents, before.limit_documents)
        start = before.from_
    if start in stages or not learnt:
        return
    question_ids = _asked_ids(stages, settings.questions)
    if question_ids and not question_ids & learnt:
        raise DataError(
            f"its questions are about '{min(question_ids)}'{' and others' if len(question_ids) > 1 else ''}, and none "
            f"of the {len(learnt)} documents learnt before it, such as '{min(learnt)}'; give the questions on those, "
            "or name the documents that they are about by `about`"
        )


def _document_ids(stages: Stages, data: Path, limit: int | None) -> set[str]:
    """Return the documents behind a data field: those at a path, or those that a data stage is made from."""
    source = stages.get(stage_named(data) or "")
    if source is not None and getattr(source.settings, "documents", None) is not None:
        return _document_ids(stages, source.settings.documents, source.settings.limit_documents)
    return set() if source else {document.origin for document in read_documents(data, limit)}


def _asked_ids(stages: Stages, data: Path) -> set[str]:
    """Return the documents that questions are about; those of a data stage are about what that reads."""
    source = stages.get(stage_named(data) or "")
    if source is None:
        return {question.document for question in read_questions(data)}
    if getattr(source.settings, "questions", None) is not None:
        return _asked_ids(stages, source.settings.questions)
    return _document_ids(stages, source.settings.documents, source.settings.limit_documents)


def needs(settings: SftStage, costing: Costing) -> Needs:
    """Estimate the cost from the tokens of documents, questions and replay, over all epochs."""
    documents, questions = training_data(settings, costing.inputs)
    tokens = sum(text_tokens(document.rendered()) for document in documents) + QUESTION_TOKENS * len(questions)
    tokens *= 1 + (settings.replay.ratio if settings.replay else 0)
    epochs = settings.trainer.get("num_train_epochs", 8)
    return training_needs(costing.parameters, settings.adapt, tokens * epochs)


def label(stages: Stages, model: str) -> RowLabel:
    """Label the model SFT, or by what its start held already: a skill, or RL."""
    settings = stages[model].settings
    start = settings.from_
    while start in stages and isinstance(stages[start].settings, SftStage):
        start = stages[start].settings.from_
    if start in stages:
        return _after(label_of(stages, start), start)
    what = "documents" if settings.documents else "questions"
    source = stage_named(settings.documents or settings.questions)
    return RowLabel("sft", "SFT", f"fine-tuned on the {what}" + (f" of the stage {source}" if source else ""))


def _after(start: RowLabel, name: str) -> RowLabel:
    if start.role not in ("grafted", "control"):
        note = f"fine-tuned on the documents on top of the model {name}"
        return RowLabel("other", f"{start.label}, then SFT", note)
    what = start.label.removeprefix("SFT + ").removeprefix("base + ")
    role = "control" if what != "skill" and start.role == "control" else "grafted"
    note = f"fine-tuned on the documents after the stage {name} had injected the vector"
    return RowLabel(role, f"{what}, then SFT", note)


SFT = StageKind(
    settings=SftStage,
    makes="checkpoint",
    run=run,
    version=4,
    trained_from="from_",
    check=check,
    read=read,
    preflight=preflight,
    needs=needs,
    label=label,
    parallel=True,
)
