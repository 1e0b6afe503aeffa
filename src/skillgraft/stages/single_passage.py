"""The stage kind `single_passage`: each passage learnt alone, asked with and without skills, and forgotten again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from skillgraft.adapters import get_adapter, training_bytes
from skillgraft.checkpoint.layout import context_of, read_config
from skillgraft.data.documents import read_documents
from skillgraft.data.passages import passages
from skillgraft.data.tasks import read_questions
from skillgraft.errors import RecipeError
from skillgraft.settings.base import BASE, Chooses, DataPath, Ref
from skillgraft.settings.evaluation import LEARNT, START, SinglePassageSettings
from skillgraft.settings.text import check_text
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.costs import ANSWER_TOKENS, Costing, Needs, text_tokens, written
from skillgraft.stages.inject import check_injection
from skillgraft.stages.kind import StageKind, Stages
from skillgraft.stages.planned import PlannedStage, Preflight
from skillgraft.stages.reading import adapter_origin, digests, path_of, questions_of
from skillgraft.stages.row_labels import injected_label, label_of, training_cost
from skillgraft.stages.training import check_adaptation, running_models, tracked_trainer
from skillgraft.support.digest import digest


class SinglePassageStage(SinglePassageSettings):
    """For each document: learn it alone, answer its questions closed-book with and without skills, forget it again."""

    kind: Literal["single_passage"] = Field(description="one adapter a passage: learnt, scored, discarded")
    from_: Annotated[str, Ref("checkpoint")] = Field(
        BASE, alias="from", description="stage, 'base' or checkpoint directory to start from each time"
    )
    documents: Annotated[Path, DataPath("documents", use="learn")] = Field(
        description="folder of text files, a table with id, title, text, or a synthesize stage"
    )
    limit_documents: Annotated[int | None, Chooses(passages=True)] = Field(
        None, ge=1, description="limit to the first N passages"
    )
    questions: Annotated[Path, DataPath("questions", use="ask")] = Field(
        description="table (.jsonl, .csv, …) with document, question, answers"
    )


def check(name: str, settings: SinglePassageStage) -> None:
    """Raise for a row that takes a name that every table has, or that is put on two models at once."""
    for row, skills in settings.rows.items():
        if row in (START, LEARNT):
            raise RecipeError(f"stages.{name}.skills: the row '{row}' is always there; give `row` another name")
        if len({each.unread for each in skills}) > 1:
            raise RecipeError(f"stages.{name}.skills: the row '{row}' is unread and is not; give it two names")
        if len({each.skill for each in skills}) < len(skills):
            raise RecipeError(
                f"stages.{name}.skills: the row '{row}' names a skill twice; give each λ a row of its own by `row`"
            )


def read(settings: SinglePassageStage) -> dict[str, str]:
    """Return the digests of the passages, with all their renderings, and of the questions about them."""
    path = path_of(settings, "documents")
    if path is None:
        return digests([], questions_of(settings, [], []))
    every = read_documents(path)
    chosen = passages(every, settings.limit_documents)
    known, about = [p.document for p in passages(every)], [p.document for p in chosen]
    data = {"passages": digest([[p.document.id, [[d.title, d.text] for d in p.renderings]] for p in chosen])}
    return data | digests([], questions_of(settings, known, about)) | adapter_origin(settings)


@running_models
def run(settings: SinglePassageStage, context: Context) -> StageResult:
    """Learn each passage alone, score it with and without skills, and forget it; a scored passage is kept."""
    from skillgraft.evals.single_passage import build_table, score_passages
    from skillgraft.evals.table import write_table
    from skillgraft.models.precision import describe

    chosen = passages(read_documents(context.data(settings.documents)), settings.limit_documents)
    documents = [passage.document for passage in chosen]
    questions = read_questions(context.data(settings.questions), documents)
    with tracked_trainer(settings.trainer, context) as trainer:
        raw_results, facts = score_passages(
            settings.model_copy(update={"trainer": trainer}),
            start=context.inputs[settings.from_],
            skills=context.inputs,
            passages=chosen,
            questions=questions,
            work=context.work,
            seed=context.seed,
            checkpoint_seconds=context.checkpoint_seconds,
            progress=context.progress,
        )
    evaluation = build_table(context.name, raw_results, facts, context.about, questions, documents)
    write_table(context.out, evaluation, raw_results)
    flops = facts.pop("flops") + sum(raw["flops"] for raw in raw_results.values())
    details = {**facts, "questions": len(questions)}
    return StageResult(details, flops=flops, precision=describe(), headline=["loss"])


def preflight(given: Preflight) -> Iterable[str]:
    """Raise for what trainer or LoRA refuse, for skills that do not fit the start, and for rows that do not."""
    from skillgraft.adapters.lora import check_stored_matrices
    from skillgraft.checkpoint.weight_names import check_one_to_one
    from skillgraft.domains.knowledge import KNOWLEDGE
    from skillgraft.models.loading import load_tokenizer
    from skillgraft.skills import load_skill
    from skillgraft.train.plan_checks import check_asked, check_learnable
    from skillgraft.train.sft import sft_arguments

    settings, inputs = given.planned.settings, given.planned.inputs
    start = given.root(settings.from_)
    check_adaptation(settings.trainer, start, settings.adapt)
    adapter = get_adapter(settings.adapt)
    if start is not None:
        if adapter is not None:
            check_stored_matrices(start, adapter)
        outside = [inputs[each.skill] for each in settings.skills if each.skill not in given.stages]
        names = {name for path in outside for name in load_skill(path).names}
        check_one_to_one(start, sorted(names))
    arguments = sft_arguments(settings.trainer, Path("unused"), 0)
    check_text(settings.text, arguments.max_length)
    check_injection(given, settings.from_, [each.skill for each in settings.skills], {})
    documents, questions = written(settings.documents, inputs), written(settings.questions, inputs)
    if start is not None and documents is not None:
        tokenizer, context = load_tokenizer(start), context_of(read_config(start))
        chosen = passages(read_documents(documents), settings.limit_documents)
        for passage in chosen:
            check_learnable(
                tokenizer, passage.renderings, [], arguments, context, text=settings.text, stage="single_passage"
            )
        if questions is not None:
            asked = read_questions(questions, [passage.document for passage in chosen])
            check_asked(tokenizer, KNOWLEDGE, asked, context, settings.max_new_tokens, "max_new_tokens")
    return ()


def needs(settings: SinglePassageStage, costing: Costing) -> Needs:
    """Estimate the cost from the tokens that are learnt and answered, over all rows."""
    path = written(settings.documents, costing.inputs)
    chosen = passages(read_documents(path), settings.limit_documents) if path else []
    tokens = sum(text_tokens(each.rendered()) for passage in chosen for each in passage.renderings)
    questions = len(costing.questions(settings, [passage.document for passage in chosen] or None))
    answered = questions * (ANSWER_TOKENS + settings.max_new_tokens) * (2 + len(settings.rows))
    learnt = tokens * settings.trainer.get("num_train_epochs", 8)
    per_weight = training_bytes(settings.adapt) + 4  # the model that learns and the one that answers
    parameters = costing.parameters
    return Needs(6 * parameters * learnt + 4 * parameters * answered, parameters * per_weight + 2**30, parameters * 4)


def rows(stages: Stages, planned: PlannedStage) -> dict[str, dict[str, Any]]:
    """Return, for each row of the table: label, role, note, cost before it, and whether it `learns` the passage."""
    settings = planned.settings
    role, label, note = label_of(stages, settings.from_)
    described: dict[str, dict[str, Any]] = {
        START: {"label": label, "role": role if role == "base" else "other", "note": f"start: {note}", "learns": False},
        LEARNT: {
            "label": "SFT on the passage" if role == "base" else f"{label} + SFT on the passage",
            "role": "sft",
            "note": "fine-tuned on each question's passage alone, and discarded after it",
            "learns": True,
        },
    }
    for row, skills in settings.rows.items():
        learns = not skills[0].unread
        scale = ", ".join(f"λ = {each.scale:g}" for each in skills)
        scale = scale if len(skills) == 1 else f"{len(skills)} skills, {scale}"
        role, label, note = injected_label(stages, [each.skill for each in skills], scale, learns)
        others = {each["label"] for each in described.values()}
        described[row] = {
            "label": f"{label} ({row})" if label in others else label,
            "role": role,
            "note": note,
            "learns": learns,
            "on": described[LEARNT if learns else START]["label"],
        }
    for row, known in described.items():
        skills = settings.rows.get(row, [])
        known["cost"] = training_cost(stages, [settings.from_, *(each.skill for each in skills)])
    return described


def names(settings: SinglePassageStage) -> list[str]:
    """Return the names of the rows that skills make."""
    return [each.name for each in settings.skills]


SINGLE_PASSAGE = StageKind(
    settings=SinglePassageStage,
    makes="table",
    run=run,
    version=2,
    check=check,
    read=read,
    preflight=preflight,
    needs=needs,
    rows=rows,
    names=names,
)
