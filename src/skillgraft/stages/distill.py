"""The stage kind `distill`: on-policy self-distillation with the document in the teacher's context (SDFT)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from skillgraft.adapters import training_bytes
from skillgraft.checkpoint.layout import context_of, read_config
from skillgraft.data.documents import read_documents
from skillgraft.data.tasks import read_questions
from skillgraft.errors import RecipeError
from skillgraft.settings.base import ADAPT, AdapterSettings, Chooses, DataPath, PromptSettings, Ref, TrainerArguments
from skillgraft.settings.synthesis import LONGEST_ANSWER, SEES, TeacherSees
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.costs import ANSWER_TOKENS, Costing, Needs, text_tokens, written
from skillgraft.stages.kind import StageKind, Stages
from skillgraft.stages.planned import Preflight
from skillgraft.stages.reading import adapter_origin, read_data
from skillgraft.stages.row_labels import RowLabel
from skillgraft.stages.training import check_adaptation, renamed_curve, running_models, trained_result, training


class DistillStage(PromptSettings):
    """On-policy self-distillation: the model learns, without a document, what it says with the document in context."""

    kind: Literal["distill"] = Field(description="learn from oneself with the document in context (SDFT)")
    from_: Annotated[str, Ref("checkpoint")] = Field(
        alias="from", description="stage, 'base' or checkpoint directory: student and first teacher"
    )
    documents: Annotated[Path, DataPath("documents", use="learn")] = Field(
        description="folder of text files, or a table (.jsonl, .csv, …) with id, title, text"
    )
    limit_documents: Annotated[int | None, Chooses()] = Field(
        None, ge=1, description="learn the first N documents only"
    )
    questions: Annotated[Path | None, DataPath("questions", use="learn")] = Field(
        None,
        description="table with document, question, answers; absent: the student tells what a title is about",
    )
    teacher_sees: TeacherSees = Field("both", description=SEES)
    teacher: Literal["ema", "start"] = Field(
        "ema", description="the teacher's weights: a moving average of the student's, or those of the start"
    )
    teacher_rate: float = Field(0.01, gt=0, le=1, description="share of the student in the average after each step")
    skip_tokens: int = Field(0, ge=0, description="first tokens of every answer that carry no loss")
    adapt: AdapterSettings = Field(None, description=ADAPT)
    trainer: TrainerArguments = Field(
        {}, description="arguments of TRL's DistillationConfig; beta: 0 for forward, 1 for reverse KL"
    )


def check(name: str, settings: DistillStage) -> None:
    """Raise for a stage whose teacher would see no more than its student, or that would learn nothing."""
    if settings.questions is None and settings.teacher_sees == "answer":
        raise RecipeError(f"stages.{name}.teacher_sees: an answer needs questions; document is what is left")
    if settings.teacher == "start" and "teacher_rate" in settings.model_fields_set:
        raise RecipeError(f"stages.{name}.teacher_rate: teacher: start never moves; leave it out")
    longest = settings.trainer.get("max_completion_length", LONGEST_ANSWER)
    if isinstance(longest, int) and 0 < longest <= settings.skip_tokens:
        raise RecipeError(
            f"stages.{name}.skip_tokens: {settings.skip_tokens} of at most {longest} tokens leaves none to learn from"
        )


@running_models
def run(settings: DistillStage, context: Context) -> StageResult:
    """Distill a model into itself: the teacher has the document in its context, the student has not."""
    from skillgraft.train.distill import train_distill

    documents = read_documents(context.data(settings.documents), settings.limit_documents)
    questions = read_questions(context.data(settings.questions), documents) if settings.questions else []
    with training(settings, context) as arguments:
        trained = train_distill(
            documents=documents,
            questions=questions,
            ask_titles=settings.questions is None,
            teacher_sees=settings.teacher_sees,
            teacher_rate=settings.teacher_rate if settings.teacher == "ema" else None,
            skip_tokens=settings.skip_tokens,
            **arguments,
        )
    names = {"step": "step", "loss": "loss", "entropy": "entropy", "completions/mean_length": "completion_tokens"}
    details = {"documents": len(documents), "questions": len(questions)}
    curve = renamed_curve(trained.curve, names)
    return trained_result(trained, details, curve, ["loss", "entropy", "completion_tokens"])


def read(settings: DistillStage) -> dict[str, str]:
    """Return the digests of documents and questions."""
    return read_data(settings) | adapter_origin(settings)


def preflight(given: Preflight) -> Iterable[str]:
    """Raise for what trainer or LoRA refuse, for prompts that do not fit, and for fewer than one step needs."""
    from skillgraft.models.loading import load_tokenizer
    from skillgraft.train.distill import check_distill_rows, distill_arguments, distill_rows

    settings, inputs = given.planned.settings, given.planned.inputs
    start = given.root(settings.from_)
    check_adaptation(settings.trainer, start, settings.adapt)
    arguments = distill_arguments(settings.trainer, settings.adapt is not None, Path("unused"), 0)
    documents_path, questions_path = written(settings.documents, inputs), written(settings.questions, inputs)
    if start is None or documents_path is None or (settings.questions is not None and questions_path is None):
        return ()
    documents = read_documents(documents_path, settings.limit_documents)
    questions = read_questions(questions_path, documents) if questions_path else []
    tokenizer = load_tokenizer(start)
    rows = distill_rows(tokenizer, documents, questions, settings.questions is None, settings.teacher_sees)
    check_distill_rows(tokenizer, rows, arguments, context_of(read_config(start)) or 2**31)
    return ()


def needs(settings: DistillStage, costing: Costing) -> Needs:
    """Estimate the cost: a sampled answer, and what student and teacher read, for each question of each round."""
    documents = costing.documents(settings)
    prompts = len(documents)
    if settings.questions and documents:
        prompts = len(costing.questions(settings, documents)) or prompts
    context_tokens = sum(text_tokens(document.text) for document in documents) / max(len(documents), 1)
    rounds = settings.trainer.get("num_train_epochs", 2) * prompts
    if "max_steps" in settings.trainer:
        rounds = settings.trainer["max_steps"] * settings.trainer.get("per_device_train_batch_size", 16)
    per_weight = training_bytes(settings.adapt) + 4  # the teacher's weights beside the student's
    tokens = 8 * ANSWER_TOKENS + 2 * (context_tokens + ANSWER_TOKENS)
    parameters = costing.parameters
    return Needs(parameters * rounds * tokens, parameters * per_weight + 2**30, parameters * (per_weight + 4))


def label(stages: Stages, model: str) -> RowLabel:
    """Label the model SDFT."""
    note = "distilled into itself: with the document in its context it taught itself without"
    return RowLabel("other", "SDFT", note)


DISTILL = StageKind(
    settings=DistillStage,
    makes="checkpoint",
    run=run,
    version=2,
    trained_from="from_",
    check=check,
    read=read,
    preflight=preflight,
    needs=needs,
    label=label,
)
