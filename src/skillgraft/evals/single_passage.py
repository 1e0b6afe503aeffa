"""Single-passage evaluation, n = 1: each passage is learnt alone, asked about closed-book, and forgotten again.

The setting of SEAL (arXiv 2506.10943, section 3.1: an inner update on one passage) and of PaST on SQuAD (arXiv
2601.11258, experiments). The rows differ in the vector that is added to what was learnt, so that their differences are
paired by question.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from skillgraft.adapters import get_adapter
from skillgraft.data.documents import Document
from skillgraft.data.passages import Passage
from skillgraft.data.tasks import Question
from skillgraft.evals import table
from skillgraft.evals.answers import closed_book, score
from skillgraft.evals.evaluation import Evaluation
from skillgraft.evals.retention import measure
from skillgraft.evals.tasks import read_retention
from skillgraft.models.loading import count_parameters
from skillgraft.settings.evaluation import LEARNT, START, RowSkill, SinglePassageSettings
from skillgraft.support.progress import NO_METRICS, Progress
from skillgraft.support.resume import load_or_compute
from skillgraft.train.single_passage import Answerer, Learner


def score_passages(
    settings: SinglePassageSettings,
    *,
    start: Path,
    skills: Mapping[str, Path],
    passages: Sequence[Passage],
    questions: Sequence[Question],
    work: Path,
    seed: int,
    checkpoint_seconds: float,
    progress: Progress,
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return each row's raw result on `questions` by its name, as the eval stage has it, and facts about learning.

    A passage's result is written to `work` before the next one is learnt, so that a kill loses at most one passage.
    Passages without questions are not learnt.
    """
    places: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        places.setdefault(question.document, []).append(place)
    chosen = [passage for passage in passages if passage.document.id in places]
    answerer = Answerer(start)
    learner = Learner(
        start,
        work,
        adapter=get_adapter(settings.adapt),
        trainer=settings.trainer,
        text=settings.text,
        seed=seed,
        checkpoint_seconds=checkpoint_seconds,
    )
    vectors = {name: [_operand(each, skills) for each in row] for name, row in settings.rows.items()}
    unread = [START, *(name for name, row in settings.rows.items() if row[0].unread)]
    reading = {row: vectors.get(row, []) for row in (LEARNT, *vectors) if row not in unread}
    common = {
        row: load_or_compute(
            work / f"row-{place}.json",
            partial(_ask, answerer, vectors.get(row, []), questions, settings, settings.retention_passages > 0),
        )
        for place, row in enumerate(unread)
    }
    results: list[dict[str, Any]] = []
    for number, passage in enumerate(chosen):

        def moved(step: int, steps: int, metrics: Mapping[str, float] = NO_METRICS, /, done: int = number) -> None:
            progress(done, len(chosen), metrics)

        mine = [questions[place] for place in places[passage.document.id]]
        retention = number < settings.retention_passages
        make = partial(_read, learner, answerer, number, passage, reading, mine, settings, retention, moved)
        results.append(load_or_compute(work / f"passage-{number:05d}.json", make))
        learner.forget()
        progress(number + 1, len(chosen), _so_far(results))
    raws = {row: common[row] if row in common else _joined(row, results, places, len(questions)) for row in vectors}
    raws = {START: common[START], LEARNT: _joined(LEARNT, results, places, len(questions)), **raws}
    learning = [result["learning"] for result in results]
    return raws, {
        "passages": len(chosen),
        "passages_without_questions": len(passages) - len(chosen),
        **{name: sum(one[name] for one in learning) for name in ("seconds", "flops", "tokens")},
        "curve": _mean_curve([one["losses"] for one in learning]),
    }


def build_table(
    stage: str,
    raws: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
    about: Mapping[str, Mapping[str, Any]],
    questions: Sequence[Question],
    documents: Sequence[Document],
) -> Evaluation:
    """Return the evaluation that a report shows, with intervals over passages.

    `about` describes each row and says whether it `learns`: what learning all passages cost is then added to its cost.
    """
    described = {}
    for row in raws:
        known = dict(about[row])
        learning = {"train_seconds": facts["seconds"], "train_flops": facts["flops"]} if known.pop("learns") else {}
        cost = {name: value + learning.get(name, 0.0) for name, value in known["cost"].items()}
        described[row] = {**known, "model": f"{stage}/{row}", "cost": cost}
    labels = {row: known["label"] for row, known in described.items()}
    pairs = table.pairs_to_compare({row: known["role"] for row, known in described.items()}, LEARNT)
    return {
        "stage": stage,
        "questions": len(questions),
        "documents": len({question.document for question in questions}),
        "rows": [table.build_row(raws[row], questions, described[row]) for row in raws],
        "comparisons": table.differences(raws, labels, pairs, questions),
        "examples": table.examples(raws, labels, questions, {document.id: document for document in documents}),
    }


def _read(
    learner: Learner,
    answerer: Answerer,
    number: int,
    passage: Passage,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    questions: Sequence[Question],
    settings: SinglePassageSettings,
    retention: bool,
    moved: Progress,
) -> dict[str, Any]:
    """Learn one passage and return every row's result on its questions, and what learning cost."""
    began = time.monotonic()
    trained, learnt = learner.learn(number, passage, moved)
    seconds = time.monotonic() - began
    results = {row: _ask(answerer, [learnt, *vectors], questions, settings, retention) for row, vectors in rows.items()}
    losses = [[point["step"], point["loss"]] for point in trained.curve if "loss" in point]
    learning = {"seconds": seconds, "flops": trained.flops, "tokens": trained.tokens, "losses": losses}
    return {"document": passage.document.id, "learning": learning, "rows": results}


def _operand(each: RowSkill, skills: Mapping[str, Path]) -> dict[str, Any]:
    return {"skill": str(skills[each.skill]), **({} if each.scale == 1 else {"weight": each.scale})}


def _ask(
    answerer: Answerer,
    operands: Sequence[Mapping[str, Any]],
    questions: Sequence[Question],
    settings: SinglePassageSettings,
    with_retention: bool,
) -> dict[str, Any]:
    """Return answers, scores by metric, retention by item, and what asking cost, of the start with `operands` added.

    Without operands the answerer must be as it was loaded.
    """
    began = time.monotonic()
    if operands:
        answerer.become(operands)
    model, tokenizer = answerer.model, answerer.tokenizer
    retained = read_retention(with_retention)
    answers, tokens = closed_book(model, tokenizer, questions, settings.max_new_tokens, settings.batch_size)
    return {
        "answers": answers,
        "scores": score(answers, questions),
        "retention": measure(model, tokenizer, retained)["retention"] if retained else [],
        "seconds": time.monotonic() - began,
        "flops": 2.0 * count_parameters(model) * tokens,
    }


def _joined(
    row: str, results: Sequence[Mapping[str, Any]], asked: Mapping[str, list[int]], count: int
) -> dict[str, Any]:
    """Return a row's result on all questions in their order; retention is the mean over the passages that have it."""
    parts = [(asked[result["document"]], result["rows"][row]) for result in results]
    answers, scores = [""] * count, {name: [0.0] * count for name in parts[0][1]["scores"]}
    for places, part in parts:
        for at, place in enumerate(places):
            answers[place] = part["answers"][at]
            for name in scores:
                scores[name][place] = part["scores"][name][at]
    measured = [part["retention"] for _, part in parts if part["retention"]]
    return {
        "answers": answers,
        "scores": scores,
        "retention": [sum(items) / len(measured) for items in zip(*measured, strict=True)],
        "seconds": sum(part["seconds"] for _, part in parts),
        "flops": sum(part["flops"] for _, part in parts),
    }


def _so_far(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return what the progress line shows: the last passage's last loss, and containment after learning so far."""
    contained = [score for result in results for score in result["rows"][LEARNT]["scores"]["containment"]]
    losses = results[-1]["learning"]["losses"]
    metrics = {"containment": sum(contained) / len(contained)}
    return {"loss": losses[-1][1], **metrics} if losses else metrics


def _mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[dict[str, float]]:
    """Return the loss at each step, the mean over the passages that reached it."""
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, loss in curve:
            by_step.setdefault(int(step), []).append(loss)
    return [{"step": step, "loss": sum(losses) / len(losses)} for step, losses in sorted(by_step.items())]
