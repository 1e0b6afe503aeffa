"""The stages that train, as `stages.STAGES` names them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.checkpoint.provenance import base_for_training, write_provenance
from skillgraft.data.documents import Document, read_documents, read_questions
from skillgraft.data.passages import passages
from skillgraft.data.replay import read_replay
from skillgraft.data.slices import choose
from skillgraft.pipeline.plan import sft_data
from skillgraft.recipe import schema
from skillgraft.stage_context import Context, in_one_precision

Grows = schema.SftStage | schema.RlStage | schema.DistilStage | schema.SelfEditStage


@contextlib.contextmanager
def _tracked(stage: Grows | schema.SinglePassageStage, context: Context) -> Iterator[dict[str, Any]]:
    """Yield the trainer's arguments while trackers that they name write where that outlasts the stage."""
    from skillgraft.train.tracking import tracked, trackers

    if names := trackers(stage.trainer):
        context.say(f"{context.name}: training curves for {', '.join(names)}; files in {context.tracking}")
    with tracked(stage.trainer, context.tracking, context.recipe, context.name) as trainer:
        yield trainer


@contextlib.contextmanager
def _training(stage: Grows, context: Context) -> Iterator[dict[str, Any]]:
    """Yield what every trainer is told, and write into the checkpoint that it makes what that comes from."""
    from skillgraft.support.rank import is_first, processes

    context.out.mkdir(exist_ok=processes() > 1)
    start = context.inputs[stage.from_]
    with _tracked(stage, context) as trainer:
        yield {
            "model_dir": start,
            "out": context.out,
            "workdir": context.work,
            "trainer": trainer,
            "lora": stage.lora,
            "seed": context.seed,
            "checkpoint_seconds": context.checkpoint_seconds,
            "progress": context.progress,
        }
    if is_first():  # so that a skill for another base is refused later
        write_provenance(
            context.out,
            kind=stage.kind,
            base=base_for_training(start, context.base_id if stage.from_ == schema.BASE else None),
            made_by=json.loads(stage.model_dump_json(by_alias=True)),
            inputs={"from": fingerprint_checkpoint(start)},
        )


def _facts(trained: Any) -> dict[str, Any]:
    """Return what is recorded of all training: what it cost, and what it ran on."""
    from skillgraft.support.rank import processes
    from skillgraft.train.precision import describe

    return {"tokens": trained.tokens, "flops": trained.flops, "precision": describe(), "processes": processes()}


def _curve(points: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> list[dict[str, float]]:
    """Return a trainer's log under our names, without what it does not hold."""
    return [{ours: point[theirs] for theirs, ours in names.items() if theirs in point} for point in points]


@in_one_precision
def run_sft(stage: schema.SftStage, context: Context) -> dict[str, Any]:
    """Fine-tune on documents and, if given, on questions with their answers."""
    from skillgraft.train.sft import train_sft

    documents, questions = sft_data(stage, context.inputs)
    with _training(stage, context) as given:
        trained = train_sft(
            documents=documents,
            questions=questions,
            shuffle_answers=stage.answers == "shuffled",
            text=stage.text,
            replay=(read_replay(stage.replay.text), stage.replay.ratio) if stage.replay else ((), 0.0),
            **given,
        )
    kept = {name: name for name in ("step", "loss", "learning_rate", "mean_token_accuracy")}
    return {
        "documents": len(documents),
        "questions": len(questions),
        "replayed_tokens": trained.replayed_tokens,
        **_facts(trained),
        "curve": _curve([point for point in trained.curve if "loss" in point], kept),
        "headline": ["loss"],
    }


@in_one_precision
def run_rl(stage: schema.RlStage, context: Context) -> dict[str, Any]:
    """Train with rewards on closed-book questions."""
    from skillgraft.data.synthesis.judge import judge_of
    from skillgraft.train.data_parallel import own_folder
    from skillgraft.train.rl import train_rl

    questions = read_questions(context.data(stage.questions), _chosen(stage, context) or None)
    with _training(stage, context) as given, judge_of(stage, context.inputs, own_folder(context.work)) as judge:
        trained = train_rl(
            questions=questions,
            reward=stage.reward,
            judge=judge,
            algorithm=stage.algorithm,
            order=stage.order,
            skip_without_variance=stage.skip_without_variance,
            pass_rate_samples=stage.pass_rate_samples,
            rounds=stage.rounds,
            **given,
        )
    return {
        "questions": len(questions),
        "trained_questions": trained.questions,
        **_facts(trained),
        "curve": trained.curve,
        "headline": ["reward", "share_without_variance", "completion_tokens"],
    }


def _chosen(stage: schema.RlStage, context: Context) -> list[Document]:
    if stage.documents is None:
        return []
    return choose(read_documents(context.data(stage.documents)), stage.limit_documents, stage.part)


@in_one_precision
def run_distil(stage: schema.DistilStage, context: Context) -> dict[str, Any]:
    """Distil a model into itself: the teacher has the document in its context, the student has not."""
    from skillgraft.train.distill import train_distil

    documents = read_documents(context.data(stage.documents), stage.limit_documents)
    questions = read_questions(context.data(stage.questions), documents) if stage.questions else []
    with _training(stage, context) as given:
        trained = train_distil(
            documents=documents,
            questions=questions,
            ask_titles=stage.questions is None,
            teacher_sees=stage.teacher_sees,
            teacher_rate=stage.teacher_rate if stage.teacher == "ema" else None,
            skip_tokens=stage.skip_tokens,
            **given,
        )
    kept = {"step": "step", "loss": "loss", "entropy": "entropy", "completions/mean_length": "completion_tokens"}
    return {
        "documents": len(documents),
        "questions": len(questions),
        **_facts(trained),
        "curve": _curve(trained.curve, kept),
        "headline": ["loss", "entropy", "completion_tokens"],
    }


@in_one_precision
def run_self_edit(stage: schema.SelfEditStage, context: Context) -> dict[str, Any]:
    """Train a writer of renderings on those of its own that were learnt best."""
    from skillgraft.train.precision import describe
    from skillgraft.train.self_edit import train_writer

    documents = read_documents(context.data(stage.documents), stage.limit_documents)
    questions = read_questions(context.data(stage.questions), documents)
    with _training(stage, context) as given:
        facts = train_writer(stage, documents=documents, questions=questions, **given)
    shown = ("score_before", "score", "score_of_kept")
    curve = [{"step": number, **{name: each[name] for name in shown}} for number, each in enumerate(facts["rounds"], 1)]
    return {**facts, "curve": curve, "headline": list(shown), "precision": describe()}


@in_one_precision
def run_single_passage(stage: schema.SinglePassageStage, context: Context) -> dict[str, Any]:
    """Learn each passage alone, score it with and without skills, and forget it; a scored passage is kept."""
    from skillgraft.evals.single_passage import build_table, score_passages
    from skillgraft.evals.table import write_table
    from skillgraft.train.precision import describe

    chosen = passages(read_documents(context.data(stage.documents)), stage.limit_documents)
    documents = [passage.document for passage in chosen]
    questions = read_questions(context.data(stage.questions), documents)
    with _tracked(stage, context) as trainer:
        raws, facts = score_passages(
            stage.model_copy(update={"trainer": trainer}),
            start=context.inputs[stage.from_],
            skills=context.inputs,
            passages=chosen,
            questions=questions,
            work=context.work,
            seed=context.seed,
            checkpoint_seconds=context.checkpoint_seconds,
            progress=context.progress,
        )
    evaluation = build_table(context.name, raws, facts, context.about, questions, documents)
    write_table(context.out, evaluation, raws)
    return {
        **facts,
        "questions": len(questions),
        "flops": facts["flops"] + sum(raw["flops"] for raw in raws.values()),
        "precision": describe(),
        "headline": ["loss"],
    }
