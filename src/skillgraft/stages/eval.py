"""The stage kind `eval`: scores of several models on the same questions, with controls and retention."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from skillgraft.checkpoint.layout import context_of, read_config
from skillgraft.data.documents import Document, read_documents
from skillgraft.data.retrieval import require_bm25s
from skillgraft.data.slices import choose
from skillgraft.domains import get_domain
from skillgraft.errors import RecipeError, did_you_mean
from skillgraft.evals.evaluation import Evaluation
from skillgraft.evals.in_context import read_examples
from skillgraft.evals.tasks import read_retention
from skillgraft.settings.base import Chooses, DataPath, Ref, Slice
from skillgraft.settings.evaluation import (
    EvalRow,
    EvaluationSettings,
    RetentionSettings,
    check_retention,
    check_window,
)
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.costs import ANSWER_TOKENS, BYTES_PER_TOKEN, Costing, Needs, text_tokens, written
from skillgraft.stages.kind import StageKind, Stages
from skillgraft.stages.planned import PlannedStage, Preflight
from skillgraft.stages.reading import digests, documents_digest, documents_of, origins, questions_of
from skillgraft.stages.row_labels import label_of, training_cost
from skillgraft.stages.training import running_models
from skillgraft.support.digest import digest


class EvalStage(EvaluationSettings):
    """Scores of several models on the same questions, closed-book or with more in the prompt, and retention."""

    kind: Literal["eval"] = Field(description="score models")
    domain: str = Field("knowledge", description="what is asked: its tasks, prompts and metrics")
    questions: Annotated[Path, DataPath("questions", use="ask")] = Field(
        description="table (.jsonl, .csv, …) with document, question, answers"
    )
    documents: Annotated[Path | None, DataPath("documents")] = Field(
        None, description="keep only questions on these documents; bm25 searches all of them"
    )
    limit_documents: Annotated[int | None, Chooses()] = Field(
        None, ge=1, description="keep questions on the first N documents only"
    )
    part: Annotated[Slice | None, Chooses()] = Field(
        None, description="keep questions on one of several parts of the documents: 1/2"
    )
    baseline: Annotated[str | None, Ref("checkpoint", among="models")] = Field(
        None, description="the row that differences are taken against; default: the SFT row"
    )
    labels: Annotated[dict[str, str], Ref("checkpoint", among="models")] = Field(
        {}, description="model -> what the table calls it"
    )


def check(name: str, settings: EvalStage) -> None:
    """Raise for rows that put nothing or twice something into the prompt, for doubles, and for names of no model."""
    get_domain(settings.domain)
    if isinstance(settings.retention, RetentionSettings):
        check_retention(f"stages.{name}.retention", settings.retention)
    _check_rows(f"stages.{name}.rows", settings.rows, settings.documents)
    labels = [*settings.labels.values(), *(row.label for row in settings.rows if row.label is not None)]
    for label in labels:
        if labels.count(label) > 1:
            raise RecipeError(f"stages.{name}: two rows are labelled '{label}'; give each a label of its own")
    for field, named in (("baseline", [settings.baseline] if settings.baseline else []), ("labels", settings.labels)):
        for model in named:
            if model not in settings.models:
                raise RecipeError(
                    f"stages.{name}.{field}: '{model}' is no model of it{did_you_mean(model, settings.models)}"
                )
    for model in settings.models:
        if settings.models.count(model) > 1:
            raise RecipeError(f"stages.{name}.models: '{model}' stands there twice; name each model once")


def _check_rows(where: str, rows: Sequence[EvalRow], documents: Path | None) -> None:
    seen: set[str] = set()
    for row in rows:
        if bool(row.context) == bool(row.shots):
            got = "both are given" if row.context else "neither is given"
            raise RecipeError(f"{where}: {row.model}: {got}, context or shots; a row needs one of them")
        if bool(row.shots) != (row.shots_from is not None):
            raise RecipeError(f"{where}: {row.model}: shots and shots_from belong together")
        if row.context and documents is None:
            raise RecipeError(f"{where}: {row.model}: context: {row.context} needs the stage's documents")
        for field in ("top_k", "chunk_tokens", "overlap_tokens"):
            if row.context != "bm25" and field in row.model_fields_set:
                raise RecipeError(f"{where}: {row.model}: {field} is for context: bm25; leave it out")
        if row.context == "bm25" and row.overlap_tokens >= row.chunk_tokens:
            raise RecipeError(
                f"{where}: {row.model}: overlap_tokens: {row.overlap_tokens} leaves chunks of {row.chunk_tokens} "
                "tokens nothing new; lower it"
            )
        if row.id in seen:
            raise RecipeError(f"{where}: two rows are '{row.id}'; keep one, or change top_k or shots")
        seen.add(row.id)


def read(settings: EvalStage) -> dict[str, str]:
    """Return the digests of questions, retention tasks, held-out text, worked examples and searched documents.

    Raises:
        SkillgraftError: something of it is missing or broken, an example is evaluated too, or bm25s is not installed.
    """
    every, chosen = documents_of(settings)
    questions = questions_of(settings, every, chosen)
    data = digests(chosen, questions) | origins(domain=("domains", settings.domain))
    if isinstance(settings.retention, RetentionSettings) and (retention := read_retention(settings.retention)):
        for name, items in retention.tasks.items():
            data[f"retention {name}"] = digest([[item.prompt, *item.choices, item.answer] for item in items])
        if retention.text:
            data["retention text"] = digest([document.rendered() for document in retention.text])
    for row in settings.rows:
        if row.context == "bm25":
            require_bm25s()
            data["searched"] = documents_digest(every)
        if row.shots_from is not None:
            examples = read_examples(row.shots_from, row.shots, questions)
            data[f"examples {row.id}"] = digest([[e.prompt, *e.answers] for e in examples])
    return data


@running_models
def run(settings: EvalStage, context: Context) -> StageResult:
    """Score every model and row on the same questions; what was scored before a kill is not scored again."""
    from skillgraft.evals import table
    from skillgraft.evals.rows import EvaluationTask, evaluate_rows

    every = read_documents(context.data(settings.documents)) if settings.documents else []
    documents = choose(every, settings.limit_documents, settings.part)
    domain = get_domain(settings.domain)
    questions = domain.read_tasks(context.data(settings.questions), documents or None)
    task = EvaluationTask(settings, questions, every, context.seed, domain)
    raw_results = evaluate_rows(task, context.inputs, context.work, context.progress)
    about = {name: {"model": name, **context.about[name]} for name in raw_results}
    labels = {name: about[name]["label"] for name in raw_results}
    roles = {name: about[name]["role"] for name in raw_results}
    reference = table.before_adapting(roles, settings.baseline)
    pairs = table.pairs_to_compare(roles, settings.baseline)
    evaluation: Evaluation = {
        "stage": context.name,
        "questions": len(questions),
        "documents": len({question.cluster for question in questions}),
        "rows": [
            table.build_row(raw, questions, about[name], raw_results[reference]) for name, raw in raw_results.items()
        ],
        "retention_against": labels[reference],
        "comparisons": table.differences(raw_results, labels, pairs, questions),
        "examples": table.examples(raw_results, labels, questions, {d.id: d for d in documents}),
    }
    table.write_table(context.out, evaluation, raw_results)
    return StageResult(flops=sum(raw["flops"] + raw.get("retention_flops", 0.0) for raw in raw_results.values()))


def preflight(given: Preflight) -> Iterable[str]:
    """Raise for models that cannot be asked, and for what one is asked to see at once and is more than its context."""
    from skillgraft.models.preflight import check_checkpoint, remarks

    settings = given.planned.settings
    named = [*settings.models, *(row.model for row in settings.rows)]
    roots = list(dict.fromkeys(root for model in named if (root := given.root(model)) is not None))
    asked = {given.root(model) for model in settings.models}
    for root in roots:
        check_checkpoint(root)
        if root in asked:
            _check_prompts(given.planned, None, root)
    for model in settings.models if isinstance(settings.retention, RetentionSettings) else ():
        if root := given.root(model):
            check_window("retention", settings.retention, model, context_of(read_config(root)))
    for row in settings.rows:
        if root := given.root(row.model):
            _check_prompts(given.planned, row, root)
    return [line for root in roots[:1] for line in remarks(root, settings.max_new_tokens)]


def _check_prompts(planned: PlannedStage, row: EvalRow | None, root: Path) -> None:
    """Raise for a prompt of a row (None: the question alone) that does not fit with its answer into the context.

    So for documents or worked examples that are not there. BM25 looks documents up only where chunks of full length
    would not fit.
    """
    settings, context = planned.settings, context_of(read_config(root)) or 2**31
    documents, questions = (written(path, planned.inputs) for path in (settings.documents, settings.questions))
    if questions is None or (settings.documents is not None and documents is None):
        return
    if row is not None and row.context is not None:
        found = row.top_k * row.chunk_tokens + settings.max_new_tokens
        if row.context == "bm25" and found <= context:
            return
    from skillgraft.evals.rows import EvaluationTask, prompt_sizes, row_prompts
    from skillgraft.models.loading import load_tokenizer

    domain, tokenizer = get_domain(settings.domain), load_tokenizer(root)
    every = read_documents(documents) if documents else []
    about = choose(every, settings.limit_documents, settings.part) if documents else None
    task = EvaluationTask(settings, domain.read_tasks(questions, about), every, 0, domain)
    prompt_sizes(task, row, row_prompts(task, row, tokenizer)[0], tokenizer, context)


def needs(settings: EvalStage, costing: Costing) -> Needs:
    """Estimate the cost from the tokens of prompts, answers and retention."""
    documents = costing.documents(settings)
    about = documents if written(settings.documents, costing.inputs) else None
    questions = len(costing.questions(settings, about))
    tokens: float = questions * (ANSWER_TOKENS + settings.max_new_tokens) * len(settings.models)
    tokens += questions * sum(_row_tokens(row, documents) + settings.max_new_tokens for row in settings.rows)
    tokens += _retention_tokens(settings.retention) * len(settings.models)
    return Needs(4 * costing.parameters * tokens, costing.parameters * 4 + 2**30, 2**20)


def _row_tokens(row: EvalRow, documents: Sequence[Document]) -> float:
    """Return about how many tokens one prompt of a row has."""
    if row.shots:
        return ANSWER_TOKENS * (row.shots + 1)
    sizes = [text_tokens(document.text) for document in documents] or [0.0]
    mean = sum(sizes) / len(sizes)
    return ANSWER_TOKENS + (mean if row.context == "gold" else row.top_k * min(mean, row.chunk_tokens))


def _retention_tokens(setting: bool | RetentionSettings) -> float:
    """Return about how many tokens retention computes for one model: prompts and choices, and held-out text."""
    retention = read_retention(setting)
    if retention is None:
        return 0.0
    items = [item for items in retention.tasks.values() for item in items]
    prompt_bytes = sum(len(item.choices) * len(item.prompt.encode()) + sum(map(len, item.choices)) for item in items)
    overlap = retention.window / retention.stride
    return (prompt_bytes + overlap * sum(len(document.text.encode()) for document in retention.text)) / BYTES_PER_TOKEN


def rows(stages: Stages, planned: PlannedStage) -> dict[str, dict[str, Any]]:
    """Return, for each model and row of the table: label, role, note and training cost."""
    settings = planned.settings
    described: dict[str, dict[str, Any]] = {}

    def describe(name: str, model: str, role: str, label: str, note: str) -> None:
        taken = label in [each["label"] for each in described.values()]
        described[name] = {
            "label": f"{label} ({name})" if taken else label,
            "role": role,
            "note": note,
            "cost": training_cost(stages, [model]),
        }

    for model in settings.models:
        role, label, note = label_of(stages, model)
        describe(model, model, role, settings.labels.get(model, label), note)
    for row in settings.rows:
        role, what, note = _in_the_prompt(row)
        start = described[row.model]["label"] if row.model in described else label_of(stages, row.model).label
        describe(row.id, row.model, role, row.label or f"{start}, {what}", note)
    return described


def _in_the_prompt(row: EvalRow) -> tuple[str, str, str]:
    """Return a row's role, what its label says of the prompt, and its note."""
    if row.shots:
        note = (
            f"few-shot: {row.shots} worked examples from other questions stand in the prompt, drawn for each question"
        )
        return "few_shot", f"{row.shots}-shot: worked examples in the prompt", note
    if row.context == "gold":
        return "open_book", "its document in the prompt", "open book: the document that is asked about, found by nobody"
    note = f"open book: the {row.top_k} chunks that BM25 ranks first of all documents stand in the prompt"
    return "open_book", f"BM25 top {row.top_k} in the prompt", note


def names(settings: EvalStage) -> list[Any]:
    """Return what the table calls its rows, and which is the baseline: names, since no path enters the address."""
    models = [[Path(model).name, settings.labels.get(model)] for model in settings.models]
    return [models, [row.name for row in settings.rows], settings.baseline and Path(settings.baseline).name]


EVAL = StageKind(
    settings=EvalStage,
    makes="table",
    run=run,
    version=3,
    check=check,
    read=read,
    preflight=preflight,
    needs=needs,
    rows=rows,
    names=names,
)
