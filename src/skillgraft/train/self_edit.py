"""A writer of renderings, trained by what its renderings are worth: SEAL's outer loop by ReST-EM.

For each passage of a round the writer samples several self-edits. Each is learnt alone with the passage (LoRA on the
writer itself, thrown away), and scored by closed-book questions about the passage. The best of them are kept, and the
writer is fine-tuned to write them: the next round samples from that (SEAL, arXiv 2506.10943, sections 3.1 and 3.2,
algorithm 1; rejection sampling and SFT: ReST-EM, arXiv 2312.06585; rank, rate and epochs of its released code). As
there, the self-edit with the highest score is kept also where none is better than another, and the passage is learnt
beside the self-edit, each under its title. Departures: a score without a judge, one learning a self-edit where that
code takes the mean of three, prompts in our own words. All that is long is kept in the working folder: samples by
batch, scores one by one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from skillgraft.adapters import get_adapter
from skillgraft.adapters.kind import Adapter
from skillgraft.adapters.lora import ADAPTER, save_trained
from skillgraft.checkpoint.layout import parameters_of, read_layout
from skillgraft.data.documents import Document
from skillgraft.data.passages import Passage
from skillgraft.data.slices import asked_documents
from skillgraft.data.synthesis.generation import GenerationCache, write_locally
from skillgraft.data.synthesis.local_writer import LocalWriter
from skillgraft.data.synthesis.prompt_templates import read_styles
from skillgraft.data.synthesis.requests import Request, lines, plan_requests, without_cut_end
from skillgraft.data.tasks import Question
from skillgraft.domains.knowledge import KNOWLEDGE
from skillgraft.errors import TrainingError
from skillgraft.models.answering import answer
from skillgraft.models.loading import load_model, load_tokenizer
from skillgraft.models.prompts import as_request, prompt_ids
from skillgraft.settings.self_edit import SelfEditSettings
from skillgraft.settings.text import WHOLE
from skillgraft.support.progress import NO_METRICS, Progress
from skillgraft.train.examples import UNLEARNT, Row
from skillgraft.train.sft import fit, sft_arguments
from skillgraft.train.single_passage import Answerer, Learner

Moved = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class Round:
    """One round: who writes, the folder in which it keeps what is done, how its learning is seeded and kept."""

    stage: SelfEditSettings
    writer: Path
    here: Path
    seed: int
    checkpoint_seconds: float


def train_writer(
    stage: SelfEditSettings,
    model_dir: Path,
    out: Path,
    workdir: Path,
    *,
    documents: Sequence[Document],
    questions: Sequence[Question],
    trainer: Mapping[str, Any],
    adapter: Adapter | None,
    seed: int,
    checkpoint_seconds: float,
    progress: Progress,
) -> dict[str, Any]:
    """Write the writer after the last round into the existing directory `out`; return facts of every round.

    Progress counts self-edits, once when they are written and once when they are scored.

    Raises:
        RecipeError: fewer passages with questions than rounds.
        TrainingError: no self-edit that could be kept, or one that the trainer would cut off.
    """
    questions_of: dict[str, list[Question]] = {}
    for question in questions:
        questions_of.setdefault(question.document, []).append(question)
    used = asked_documents(documents, questions, stage.rounds)
    writer, rounds, done = model_dir, [], 0
    parameters = parameters_of(read_layout(model_dir))
    for number, documents_of_round in enumerate(slices(used, stage.rounds)):
        this = Round(stage, writer, workdir / f"round-{number}", seed, checkpoint_seconds)
        this.here.mkdir(exist_ok=True)
        moved = partial(_from, progress, done, 2 * len(used) * stage.samples)
        requests, texts, tokens = _sample(this, documents_of_round, moved)
        before, scored = _score(this, requests, texts, questions_of, moved)
        scores = [each["score"] for each in scored]
        best_places = best(requests, scores, stage.keep)
        pairs = [(requests[at].prompt, texts[at]) for at in best_places]
        writer, taught = _teach(this, pairs, trainer, adapter, partial(moved, 2 * len(requests)))
        done += 2 * len(requests)
        rounds.append(
            {
                "documents": len(documents_of_round),
                "self_edits": sum(score is not None for score in scores),
                "kept": len(best_places),
                "score_before": before,
                "score": _mean([score for score in scores if score is not None]),
                "score_of_kept": _mean([scores[at] for at in best_places]),
                "documents_without_choice": _without_choice(requests, scores),
                "tokens": tokens + taught["tokens"] + sum(each["tokens"] for each in scored),
                "flops": 2.0 * parameters * tokens + taught["flops"] + sum(each["flops"] for each in scored),
            }
        )
    # The factors of a later round are no difference to the start, which `extract` would take them for.
    ignored = shutil.ignore_patterns(ADAPTER) if stage.rounds > 1 else None
    shutil.copytree(writer, out, ignore=ignored, dirs_exist_ok=True)
    return {
        "rounds": rounds,
        "documents": len(used),
        "questions": sum(len(questions_of[document.id]) for document in used),
        "tokens": sum(each["tokens"] for each in rounds),
        "flops": sum(each["flops"] for each in rounds),
    }


def _from(progress: Progress, before: int, steps: int, step: int, metrics: Mapping[str, float]) -> None:
    progress(before + step, steps, metrics)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _without_choice(requests: Sequence[Request], scores: Sequence[float | None]) -> int:
    """Return how many documents' self-edits all have one score, so that nothing but their order chose among them."""
    seen: dict[str, set[float | None]] = {}
    for request, score in zip(requests, scores, strict=True):
        seen.setdefault(request.document.id, set()).add(score)
    return sum(len(values) == 1 for values in seen.values())


def slices(items: Sequence[Any], count: int) -> list[list[Any]]:
    """Return `count` consecutive disjoint parts, as equal as can be, the first ones longer."""
    size, more = divmod(len(items), count)
    ends = [size * i + min(i, more) for i in range(count + 1)]
    return [list(items[a:b]) for a, b in pairwise(ends)]


def best(requests: Sequence[Request], scores: Sequence[float | None], keep: int) -> list[int]:
    """Return the places of each document's `keep` best, the earlier of equals first; None is no score."""
    groups: dict[str, list[tuple[float, int]]] = {}
    for place, score in enumerate(scores):
        if score is not None:
            groups.setdefault(requests[place].document.id, []).append((-score, place))
    return [place for group in groups.values() for _, place in sorted(group)[:keep]]


def learning_texts(document: Document, text: str, split_lines: bool) -> Passage:
    """Return the passage and its self-edit as what is learnt together: each line of it, or all, under the title."""
    parts = lines(text) if split_lines else [text]
    edits = [Document(f"{document.id}#{number}", document.title, part) for number, part in enumerate(parts)]
    return Passage(document, (document, *edits))


def _sample(this: Round, documents: Sequence[Document], moved: Moved) -> tuple[list[Request], list[str], int]:
    """Return the round's requests, what the writer wrote for each, and the tokens that it read and wrote."""
    stage = this.stage
    styles = read_styles([stage.style], stage.prompts)
    requests = plan_requests(documents, lambda document: [document.text], styles, stage.samples, this.seed)
    cache = GenerationCache(this.here)
    if any(request.id not in cache.by_id for request in requests):
        local = LocalWriter(
            this.writer,
            load_tokenizer(this.writer),
            temperature=stage.temperature,
            top_p=stage.top_p,
            max_new_tokens=stage.max_new_tokens,
        )
        local.check_length([request.prompt for request in requests])

        def count(done: int, total: int, metrics: Mapping[str, float] = NO_METRICS, /) -> None:
            moved(done, metrics)

        write_locally(requests, local, stage.batch_size, cache, count)
    written = [cache.by_id[request.id] for request in requests]
    texts = [each["text"] if each["complete"] else without_cut_end(each["text"]) for each in written]
    return requests, texts, sum(each["tokens"] for each in written)


def _score(
    this: Round,
    requests: Sequence[Request],
    texts: Sequence[str],
    asked: Mapping[str, Sequence[Question]],
    moved: Moved,
) -> tuple[float, list[dict[str, Any]]]:
    """Return the mean score before anything is learnt, and of each self-edit its score and what learning it cost."""
    stage, scores = this.stage, this.here / "scores"
    scores.mkdir(exist_ok=True)
    cache = GenerationCache(scores)
    wanted = ["before", *(request.id for request in requests)]
    if all(name in cache.by_id for name in wanted):
        return cache.by_id["before"]["score"], [cache.by_id[name] for name in wanted[1:]]
    answerer = Answerer(this.writer)
    learner = Learner(
        this.writer,
        scores,
        adapter=get_adapter(stage.learn.adapt),
        trainer=stage.learn.trainer,
        text=WHOLE,
        seed=this.seed,
        checkpoint_seconds=this.checkpoint_seconds,
    )

    def measured(questions: Sequence[Question]) -> list[float]:
        prompts = [KNOWLEDGE.prompt(answerer.tokenizer, question) for question in questions]
        answers, _ = answer(answerer.model, answerer.tokenizer, prompts, stage.max_answer_tokens, 64)
        return [
            KNOWLEDGE.metrics[stage.score](text, each.answers) for text, each in zip(answers, questions, strict=True)
        ]

    if "before" not in cache.by_id:
        before = measured([q for name in dict.fromkeys(r.document.id for r in requests) for q in asked[name]])
        cache.add([{"id": "before", "score": sum(before) / len(before)}])
    for place, (request, text) in enumerate(zip(requests, texts, strict=True)):
        if request.id not in cache.by_id:
            record: dict[str, Any] = {"id": request.id, "score": None, "tokens": 0, "flops": 0.0}
            if text:
                passage = learning_texts(request.document, text, stage.split_lines)
                trained, operand = learner.learn(place, passage)
                answerer.become([operand])
                before = measured(asked[request.document.id])
                learner.forget()
                record |= {"score": sum(before) / len(before), "tokens": trained.tokens, "flops": trained.flops}
            cache.add([record])
        score = cache.by_id[request.id]["score"]
        moved(len(requests) + place + 1, {} if score is None else {stage.score: score})
    return cache.by_id["before"]["score"], [cache.by_id[name] for name in wanted[1:]]


def _teach(
    this: Round,
    kept: Sequence[tuple[str, str]],
    trainer: Mapping[str, Any],
    adapter: Adapter | None,
    said: Callable[[Mapping[str, float]], None],
) -> tuple[Path, dict[str, Any]]:
    """Fine-tune the writer on the (prompt, text) that were kept; return its new checkpoint and what that cost."""
    if not kept:
        raise TrainingError(
            "no self-edit could be kept: every one is empty; raise max_new_tokens or take another style"
        )
    taught, cost = this.here / "writer", this.here / "cost.json"
    if not taught.exists():
        learning = this.here / "learning"
        learning.mkdir(exist_ok=True)
        tokenizer = load_tokenizer(this.writer)
        args = sft_arguments(trainer, learning, this.seed)

        def show(step: int, steps: int, metrics: Mapping[str, float] = NO_METRICS, /) -> None:
            said(metrics)

        model, trained = fit(
            load_model(this.writer),
            tokenizer,
            writing_rows(tokenizer, kept, args.max_length),
            args,
            adapter=adapter,
            checkpoint_seconds=this.checkpoint_seconds,
            progress=show,
        )
        part = taught.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        save_trained(model, this.writer, part, tokenizer, adapter)
        cost.write_text(json.dumps({"tokens": trained.tokens, "flops": trained.flops}))
        part.rename(taught)
    return taught, json.loads(cost.read_text())


def writing_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], max_length: int | None
) -> list[Row]:
    """Return one row for each (prompt, text): the prompt as the writer is asked, then the text, which alone has loss.

    Raises:
        TrainingError: a row of more than `max_length` tokens, whose text would be cut off.
    """
    rows: list[Row] = []
    for prompt, text in pairs:
        (asked,) = prompt_ids(tokenizer, [as_request(tokenizer, prompt)])
        written = tokenizer(f"{text}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
        if max_length is not None and len(asked) + len(written) > max_length:
            raise TrainingError(
                f"a prompt of {len(asked)} tokens and its self-edit of {len(written)} are more than "
                f"trainer.max_length = {max_length}: it would be cut off; raise it or lower max_new_tokens"
            )
        rows.append({"input_ids": asked + written, "labels": [UNLEARNT] * len(asked) + written})
    return rows
