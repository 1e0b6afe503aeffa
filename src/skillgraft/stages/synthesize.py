"""The stage kind `synthesize`: renderings of documents by a model, or imported ones, filtered."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from skillgraft.checkpoint.fingerprint import fingerprint_file
from skillgraft.checkpoint.layout import context_of, read_config
from skillgraft.data.documents import read_documents
from skillgraft.data.synthesis.endpoint_key import read_key
from skillgraft.data.synthesis.imported_renderings import read_given
from skillgraft.data.synthesis.prompt_templates import read_styles
from skillgraft.data.tasks import read_questions
from skillgraft.errors import MissingPathError, RecipeError
from skillgraft.settings.base import BASE, Chooses, DataPath, Ref
from skillgraft.settings.synthesis import SynthesisSettings
from skillgraft.stages.context import Context, StageResult
from skillgraft.stages.costs import Costing, Needs, text_tokens, written
from skillgraft.stages.kind import StageKind
from skillgraft.stages.planned import Preflight
from skillgraft.stages.reading import prompts_digest, read_data
from skillgraft.stages.training import running_models
from skillgraft.support.digest import digest


class SynthesizeStage(SynthesisSettings):
    """Renderings of documents by a model, or given ones, filtered: documents and questions to fine-tune on."""

    kind: Literal["synthesize"] = Field(description="write renderings of documents")
    documents: Annotated[Path, DataPath("documents")] = Field(
        description="folder of text files, or a table (.jsonl, .csv, …) with id, title, text"
    )
    limit_documents: Annotated[int | None, Chooses()] = Field(
        None, ge=1, description="render the first N documents only"
    )
    model: Annotated[str, Ref("checkpoint")] = Field(
        BASE, description="stage, 'base' or checkpoint that writes; with endpoint: that counts tokens"
    )


def check(name: str, settings: SynthesizeStage) -> None:
    """Raise for nothing to write or to keep, two writers, or chunks that do not advance."""
    if (settings.given is None) != bool(settings.styles):
        got = "both are given" if settings.styles else "neither is given"
        raise RecipeError(f"stages.{name}: {got}, styles or given; synthesize needs one of them")
    if settings.given is not None and settings.endpoint is not None:
        raise RecipeError(f"stages.{name}: given renderings need no endpoint")
    if settings.given_samples is not None and settings.given is None:
        raise RecipeError(f"stages.{name}.given_samples: nothing is given; samples says how many are written")
    for style in settings.styles:
        if settings.styles.count(style) > 1:
            raise RecipeError(f"stages.{name}.styles: '{style}' stands there twice; samples asks for more of each")
    if settings.filters.min_words > settings.filters.max_words:
        raise RecipeError(
            f"stages.{name}.filters: min_words: {settings.filters.min_words} is more than max_words: "
            f"{settings.filters.max_words}, which drops everything; lower it"
        )
    if settings.endpoint is not None and settings.chat_template_kwargs:
        raise RecipeError(
            f"stages.{name}.chat_template_kwargs: an endpoint renders the prompts itself; move it under endpoint:, "
            "from where it is sent with each request (vLLM and SGLang take it)"
        )
    shortest = min(settings.chunk_tokens)
    if shortest <= settings.overlap_tokens:
        raise RecipeError(
            f"stages.{name}.overlap_tokens: {settings.overlap_tokens} leaves chunks of {shortest} tokens "
            "nothing new; lower it"
        )


def read(settings: SynthesizeStage) -> dict[str, str]:
    """Return the digests of documents, prompts, given renderings and held-out questions."""
    data = read_data(settings) | {"prompts": prompts_digest(settings.styles, settings.prompts)}
    if settings.given is not None:
        if not settings.given.is_file():
            raise MissingPathError(f"given: {settings.given} does not exist; expected JSONL with document, text")
        data["given"] = fingerprint_file(settings.given)
    held_out = [question for file in settings.held_out for question in read_questions(file)]
    if held_out:
        data["held_out"] = digest([[q.document, q.question] for q in held_out])
    return data


def writes(settings: SynthesizeStage) -> set[str]:
    """Return whether the styles make documents, questions or both."""
    makes = {style.makes_questions for style in read_styles(settings.styles, settings.prompts)}
    makes |= {False} if settings.keep_original or settings.given is not None else set()
    return {"questions" if each else "documents" for each in makes}


@running_models
def run(settings: SynthesizeStage, context: Context) -> StageResult:
    """Write, or read, renderings of documents, and keep those that pass the filters."""
    from skillgraft.data.synthesis.synthesize import synthesize

    facts = synthesize(
        settings,
        documents=read_documents(context.data(settings.documents), settings.limit_documents),
        model=context.inputs[settings.model],
        out=context.out,
        work=context.work,
        seed=context.seed,
        progress=context.progress,
    )
    return StageResult(facts)


def preflight(given: Preflight) -> Iterable[str]:
    """Raise for a missing key of an endpoint, a model that cannot write, prompts that do not fit, wrong renderings."""
    settings, root = given.planned.settings, given.root(given.planned.settings.model)
    path = written(settings.documents, given.planned.inputs)
    documents = read_documents(path, settings.limit_documents) if path else []
    if settings.given is not None:
        if documents:
            read_given(settings.given, documents, settings.given_samples)
        return ()
    if settings.endpoint is not None:
        read_key(settings.endpoint.key_variable)
        return ()
    if root is not None:
        from skillgraft.data.synthesis.local_writer import check_requests_fit
        from skillgraft.data.synthesis.synthesize import requests_for
        from skillgraft.models.loading import load_tokenizer
        from skillgraft.models.preflight import check_checkpoint

        check_checkpoint(root)
        tokenizer, styles = load_tokenizer(root), read_styles(settings.styles, settings.prompts)
        once = settings.model_copy(update={"samples": 1})
        prompts = [each.prompt for each in requests_for(once, styles, documents, tokenizer, 0)]
        check_requests_fit(tokenizer, prompts, settings.max_new_tokens, context_of(read_config(root)))
    return ()


def needs(settings: SynthesizeStage, costing: Costing) -> Needs:
    """Estimate the cost from chunks, samples and the longest rendering."""
    if settings.given is not None or settings.endpoint is not None:
        return Needs(0, 2**30, 2**24)
    sizes = [text_tokens(document.text) for document in costing.documents(settings)]
    prompts = sum(max(len(style.kinds), 1) for style in read_styles(settings.styles, settings.prompts))
    chunks = [(min(size, most), math.ceil(size / most)) for size in sizes for most in settings.chunk_tokens]
    tokens = prompts * settings.samples * sum((size + settings.max_new_tokens) * count for size, count in chunks)
    return Needs(2 * costing.parameters * tokens, costing.parameters * 4 + 2**30, 2**24)


SYNTHESIZE = StageKind(
    settings=SynthesizeStage,
    makes="documents",
    run=run,
    version=2,
    check=check,
    read=read,
    writes=writes,
    preflight=preflight,
    needs=needs,
)
