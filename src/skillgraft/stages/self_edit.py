"""The stage kind `self_edit`: SEAL's outer loop, which trains a writer on those of its renderings learnt best."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from skillgraft.checkpoint.layout import context_of, read_config
from skillgraft.data.documents import read_documents
from skillgraft.data.slices import asked_documents
from skillgraft.data.synthesis.prompt_templates import read_styles
from skillgraft.data.tasks import read_questions
from skillgraft.errors import RecipeError
from skillgraft.settings.base import ADAPT, AdapterSettings, Chooses, DataPath, Ref, TrainerArguments
from skillgraft.settings.self_edit import SelfEditSettings
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.costs import Costing, Needs, written
from skillgraft.stages.kind import StageKind, Stages
from skillgraft.stages.planned import Preflight
from skillgraft.stages.reading import adapter_origin, digests, documents_of, prompts_digest, questions_of
from skillgraft.stages.row_labels import RowLabel
from skillgraft.stages.training import check_adaptation, running_models, training


class SelfEditStage(SelfEditSettings):
    """A writer of renderings by ReST-EM: of several self-edits of a passage the best measured is kept and learnt."""

    kind: Literal["self_edit"] = Field(description="train a model to write renderings that are learnt well (SEAL)")
    from_: Annotated[str, Ref("checkpoint")] = Field(
        alias="from", description="stage, 'base' or checkpoint directory: the first writer"
    )
    documents: Annotated[Path, DataPath("documents", use="learn")] = Field(
        description="passages: folder of text files, or a table (.jsonl, .csv, …) with id, title, text"
    )
    limit_documents: Annotated[int | None, Chooses()] = Field(None, ge=1, description="use the first N documents only")
    questions: Annotated[Path, DataPath("questions", use="learn")] = Field(
        description="table (.jsonl, .csv, …) with document, question, answers: they score a self-edit"
    )
    adapt: AdapterSettings = Field(None, description=ADAPT)
    trainer: TrainerArguments = Field({}, description="arguments of TRL's SFTConfig for the writer")


def check(name: str, settings: SelfEditStage) -> None:
    """Raise for a stage that would keep all that it samples: nothing would be chosen."""
    if settings.keep >= settings.samples:
        raise RecipeError(
            f"stages.{name}.keep: {settings.keep} of {settings.samples} samples is no choice; raise samples or lower "
            "keep"
        )


def read(settings: SelfEditStage) -> dict[str, str]:
    """Return the digests of documents, questions and the prompt; raise for a prompt that asks for questions."""
    every, documents = documents_of(settings)
    questions = questions_of(settings, every, documents)
    if documents and questions:
        asked_documents(documents, questions, settings.rounds)
    if read_styles([settings.style], settings.prompts)[0].makes_questions:
        raise RecipeError(f"style: '{settings.style}' makes questions; a self-edit is a text")
    return (
        digests(documents, questions)
        | {"prompts": prompts_digest([settings.style], settings.prompts)}
        | adapter_origin(settings)
    )


@running_models
def run(settings: SelfEditStage, context: Context) -> StageResult:
    """Train a writer of renderings on those of its own that were learnt best."""
    from skillgraft.models.precision import describe
    from skillgraft.train.self_edit import train_writer

    documents = read_documents(context.data(settings.documents), settings.limit_documents)
    questions = read_questions(context.data(settings.questions), documents)
    with training(settings, context) as arguments:
        facts = train_writer(settings, documents=documents, questions=questions, **arguments)
    scores = ("score_before", "score", "score_of_kept")
    rounds = enumerate(facts["rounds"], 1)
    curve = [{"step": number, **{name: each[name] for name in scores}} for number, each in rounds]
    return StageResult(facts, precision=describe(), curve=curve, headline=list(scores))


def preflight(given: Preflight) -> Iterable[str]:
    """Raise for what the trainers or LoRA refuse, and for what does not fit: of the writer and of its learners."""
    from skillgraft.train.sft import sft_arguments

    settings = given.planned.settings
    start = given.root(settings.from_)
    check_adaptation(settings.trainer, start, settings.adapt, settings.learn.adapt)
    learning = sft_arguments(settings.learn.trainer, Path("unused"), 0)
    writing = sft_arguments(settings.trainer, Path("unused"), 0)
    documents, questions = (written(path, given.planned.inputs) for path in (settings.documents, settings.questions))
    if start is None or documents is None or questions is None:
        return
    from skillgraft.data.synthesis.requests import plan_requests
    from skillgraft.domains.knowledge import KNOWLEDGE
    from skillgraft.models.loading import load_tokenizer
    from skillgraft.models.prompts import as_request, check_prompts_fit, prompt_ids
    from skillgraft.train.plan_checks import check_asked, check_learnable

    passages = read_documents(documents, settings.limit_documents)
    asked = read_questions(questions, passages)
    used = asked_documents(passages, asked, settings.rounds)
    tokenizer, context = load_tokenizer(start), context_of(read_config(start))
    check_learnable(tokenizer, used, [], learning, context, stage="self_edit")
    check_asked(tokenizer, KNOWLEDGE, asked, context, settings.max_answer_tokens, "max_answer_tokens")
    styles = read_styles([settings.style], settings.prompts)
    requests = plan_requests(used, lambda document: [document.text], styles, 1, 0)
    sizes = [len(ids) for ids in prompt_ids(tokenizer, [as_request(tokenizer, each.prompt) for each in requests])]
    check_prompts_fit(sizes, settings.max_new_tokens, context, "documents", "cut them, or lower max_new_tokens")
    longest = max(sizes) + settings.max_new_tokens + 1
    if writing.max_length is not None and longest > writing.max_length:
        yield (
            f"a prompt of {max(sizes)} tokens and a self-edit of up to {settings.max_new_tokens} can be more than "
            f"trainer.max_length = {writing.max_length}, which ends the stage; raise it or lower max_new_tokens"
        )


def needs(settings: SelfEditStage, costing: Costing) -> Needs:
    """Estimate the cost from the self-edits that are written, and learnt once each."""
    edits = len(costing.documents(settings)) * settings.samples * settings.max_new_tokens
    learnt = edits * settings.learn.trainer.get("num_train_epochs", 10)
    parameters = costing.parameters
    return Needs(6 * parameters * (learnt + edits), parameters * 16 + 2**30, parameters * 20)


def label(stages: Stages, model: str) -> RowLabel:
    """Label the model a writer."""
    note = "trained to write renderings that are learnt well, not on these documents"
    return RowLabel("other", f"writer ({model})", note)


SELF_EDIT = StageKind(
    settings=SelfEditStage,
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
