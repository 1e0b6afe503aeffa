"""The stage kind `mix`: answers mixed from what a model says with and without the fact in its context (MixSD)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from skillgraft.checkpoint.layout import context_of, read_config
from skillgraft.data.documents import read_documents
from skillgraft.data.synthesis.teacher_prompts import by_document, with_context
from skillgraft.data.tasks import read_questions
from skillgraft.errors import RecipeError
from skillgraft.settings.base import BASE, Chooses, DataPath, PromptSettings, Ref
from skillgraft.settings.synthesis import SEES, TeacherSees
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.costs import ANSWER_TOKENS, Costing, Needs, written
from skillgraft.stages.kind import StageKind
from skillgraft.stages.planned import Preflight
from skillgraft.stages.training import running_models


class MixStage(PromptSettings):
    """Answers to train on, mixed word by word from what a model says with and without the fact in context (MixSD)."""

    kind: Literal["mix"] = Field(description="write answers near to what the model would say itself (MixSD)")
    model: Annotated[str, Ref("checkpoint")] = Field(
        BASE, description="stage, 'base' or checkpoint that writes: the one that will be trained"
    )
    questions: Annotated[Path, DataPath("questions")] = Field(
        description="table (.jsonl, .csv, …) with document, question, answers"
    )
    documents: Annotated[Path | None, DataPath("documents")] = Field(
        None,
        description="folder of text files, or a table (.jsonl, .csv, …) with id, title, text",
    )
    limit_documents: Annotated[int | None, Chooses()] = Field(
        None, ge=1, description="keep questions on the first N documents only"
    )
    teacher_sees: TeacherSees = Field("answer", description=SEES)
    naive_share: float = Field(
        0.3, ge=0, le=1, description="chance of a token to come from the model that sees the question alone (λ)"
    )
    attempts: int = Field(11, ge=1, description="tries at an answer that contains the gold one; without one: dropped")
    temperature: float = Field(0.0, ge=0, le=10, description="0: the likeliest token each time")
    max_new_tokens: int = Field(32, ge=1, description="longest answer, in tokens")
    batch_size: int = Field(32, ge=1, description="answers written at once")


def check(name: str, settings: MixStage) -> None:
    """Raise for a teacher that is to see documents which are not given."""
    if settings.documents is None and settings.teacher_sees != "answer":
        raise RecipeError(f"stages.{name}: teacher_sees: {settings.teacher_sees} needs documents")


@running_models
def run(settings: MixStage, context: Context) -> StageResult:
    """Write answers mixed from what the model says with and without the fact in its context."""
    import torch

    from skillgraft.data.synthesis.mixsd import mix_questions, write_mixed
    from skillgraft.models.loading import count_parameters, load_model, load_tokenizer
    from skillgraft.models.precision import bf16_pays, describe, device

    documents = read_documents(context.data(settings.documents), settings.limit_documents) if settings.documents else []
    questions = read_questions(context.data(settings.questions), documents or None)
    model = load_model(context.inputs[settings.model], torch.bfloat16 if bf16_pays() else torch.float32)
    answers = mix_questions(
        model.to(device()).eval(),
        load_tokenizer(context.inputs[settings.model]),
        questions,
        documents,
        context.work,
        teacher_sees=settings.teacher_sees,
        naive_share=settings.naive_share,
        attempts=settings.attempts,
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        seed=context.seed,
        progress=context.progress,
    )
    facts = write_mixed(questions, answers, context.out)
    return StageResult(facts, flops=2.0 * count_parameters(model) * facts["tokens"], precision=describe())


def preflight(given: Preflight) -> Iterable[str]:
    """Raise for a model that cannot be asked, and for prompts that do not fit into its context."""
    settings, inputs, root = given.planned.settings, given.planned.inputs, given.root(given.planned.settings.model)
    if root is None:
        return ()
    from skillgraft.models.loading import load_tokenizer
    from skillgraft.models.preflight import check_checkpoint
    from skillgraft.models.prompts import as_prompt, check_prompts_fit, prompt_ids

    check_checkpoint(root)
    questions_path, documents_path = written(settings.questions, inputs), written(settings.documents, inputs)
    if questions_path is None or (settings.documents is not None and documents_path is None):
        return ()
    documents = read_documents(documents_path, settings.limit_documents) if documents_path else []
    pairs = by_document(read_questions(questions_path, documents or None), documents, settings.teacher_sees)
    tokenizer, sees = load_tokenizer(root), settings.teacher_sees
    prompts = [as_prompt(tokenizer, with_context(question, document, sees)) for question, document in pairs]
    sizes = [len(ids) for ids in prompt_ids(tokenizer, prompts)]
    remedy = "cut the documents, or lower max_new_tokens"
    check_prompts_fit(sizes, settings.max_new_tokens, context_of(read_config(root)), "questions", remedy)
    return ()


def needs(settings: MixStage, costing: Costing) -> Needs:
    """Estimate the cost from one answer a question."""
    questions = len(costing.questions(settings))
    tokens = questions * (ANSWER_TOKENS + settings.max_new_tokens)
    return Needs(4 * costing.parameters * tokens, costing.parameters * 4 + 2**30, 2**24)


MIX = StageKind(
    settings=MixStage,
    makes="questions",
    run=run,
    version=2,
    check=check,
    writes=lambda settings: {"questions"},
    preflight=preflight,
    needs=needs,
)
