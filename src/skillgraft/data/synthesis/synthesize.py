"""The synthesize stage from its settings to its files: ask, write, filter, say what was dropped and why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from skillgraft.data.documents import Document
from skillgraft.data.synthesis.endpoint import Endpoint
from skillgraft.data.synthesis.endpoint_key import read_key
from skillgraft.data.synthesis.generation import GenerationCache, write_by_endpoint, write_locally
from skillgraft.data.synthesis.imported_renderings import read_given
from skillgraft.data.synthesis.prompt_templates import Style, read_styles
from skillgraft.data.synthesis.requests import GIVEN, Rendering, Request, plan_requests, select
from skillgraft.data.tasks import read_questions
from skillgraft.settings.synthesis import SynthesisSettings
from skillgraft.support.progress import Progress


def synthesize(
    stage: SynthesisSettings,
    *,
    documents: Sequence[Document],
    model: Path,
    out: Path,
    work: Path,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Make the directory `out` with documents.jsonl, questions.jsonl, dropped.jsonl and leakage.json; return facts.

    Renderings as they come are kept in `work`, from which a killed stage goes on.

    Raises:
        SkillgraftError: prompts that do not fit into the model's context, an endpoint that fails, given renderings
            that are wrong, a leak with `leakage: refuse`, or nothing left after the filters.
    """
    styles = read_styles(stage.styles, stage.prompts)
    facts: dict[str, Any] = {}
    if stage.given is not None:
        renderings = _given(stage.given, documents, stage.given_samples)
    else:
        renderings, facts = _written(stage, styles, documents, model, work, seed, progress)
    held_out = [question for file in stage.held_out for question in read_questions(file)]
    result = select(
        documents,
        renderings,
        stage.filters,
        makes_questions={style.name: style.makes_questions for style in styles},
        split_lines=stage.split_lines,
        keep_original=stage.keep_original,
        held_out=held_out,
        refuse_leaks=stage.leakage == "refuse",
    )
    out.mkdir()
    for name in ("documents", "questions", "dropped"):
        if records := getattr(result, name):
            _write_jsonl(out / f"{name}.jsonl", records)
    (out / "leakage.json").write_text(json.dumps(result.leakage, indent=1, ensure_ascii=False), encoding="utf-8")
    return {
        "documents": len(documents),
        "renderings": len(renderings),
        **result.counts(),
        "leakage": {
            "questions": len(held_out),
            "given_away": sum(bool(record["leaked_by"]) for record in result.leakage),
            "stay_given_away": sum(bool(record["stays"]) for record in result.leakage),
            "largest_overlap": max((record["overlap"] for record in result.leakage), default=0.0),
        },
        "prompts": {style.name: style.version for style in styles},
        **facts,
    }


def requests_for(
    stage: SynthesisSettings, styles: Sequence[Style], documents: Sequence[Document], tokenizer: Any, seed: int
) -> list[Request]:
    """Return what a model is asked to write about each chunk of the documents."""
    from skillgraft.data.chunks import chunks

    def cut(document: Document) -> list[str]:
        offsets = tokenizer(document.text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
        return chunks(document.text, offsets, stage.chunk_tokens, stage.overlap_tokens)

    return plan_requests(documents, cut, styles, stage.samples, seed)


def _given(path: Path, documents: Sequence[Document], samples: int | None) -> list[Rendering]:
    by_id = {document.id: document for document in documents}
    return [
        Rendering(f"{document}#{GIVEN}-{number}", by_id[document], by_id[document].text, GIVEN, text)
        for number, (document, text) in enumerate(read_given(path, documents, samples))
    ]


def _written(
    stage: SynthesisSettings,
    styles: Sequence[Style],
    documents: Sequence[Document],
    model: Path,
    work: Path,
    seed: int,
    progress: Progress,
) -> tuple[list[Rendering], dict[str, Any]]:
    from skillgraft.models.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    requests = requests_for(stage, styles, documents, tokenizer, seed)
    cache = GenerationCache(work)
    facts: dict[str, Any] = {}
    if stage.endpoint is not None:
        settings = stage.endpoint
        with Endpoint.from_settings(settings, read_key(settings.key_variable)) as endpoint:
            write_by_endpoint(
                requests,
                endpoint,
                settings.at_once,
                cache,
                progress,
                temperature=stage.temperature,
                top_p=stage.top_p,
                max_tokens=stage.max_new_tokens,
            )
    else:
        facts = _write_locally(stage, requests, model, tokenizer, work, cache, progress)
    renderings = [
        Rendering(
            each.id,
            each.document,
            each.chunk,
            each.style.name,
            cache.by_id[each.id]["text"],
            each.kind,
            each.instruction,
            cache.by_id[each.id]["complete"],
        )
        for each in requests
    ]
    tokens = sum(cache.by_id[each.id]["tokens"] for each in requests)
    return renderings, {"tokens": tokens, **facts}


def _write_locally(
    stage: SynthesisSettings,
    requests: Sequence[Request],
    model: Path,
    tokenizer: Any,
    work: Path,
    kept: GenerationCache,
    progress: Progress,
) -> dict[str, Any]:
    from skillgraft.data.synthesis.local_writer import LocalWriter
    from skillgraft.models.precision import describe, one_precision

    with one_precision(work):
        writer = LocalWriter(
            model,
            tokenizer,
            temperature=stage.temperature,
            top_p=stage.top_p,
            max_new_tokens=stage.max_new_tokens,
        )
        writer.check_length([request.prompt for request in requests])
        write_locally(requests, writer, stage.batch_size, kept, progress)
        tokens = sum(kept.by_id[request.id]["tokens"] for request in requests)
        return {"precision": describe(), "flops": 2.0 * writer.parameters * tokens}


def _write_jsonl(file: Path, records: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
