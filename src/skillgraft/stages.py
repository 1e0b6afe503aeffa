"""One function per kind of stage: (settings, context) -> facts, writing its result into `context.out`.

A stage sees its settings, the directories it refers to and a random seed, nothing else, so that it can run in another
process or on another machine. It makes `context.out` itself.
Heavy libraries are imported when a stage runs.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillgraft import config
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.checkpoint.provenance import base_for_training, write_provenance
from skillgraft.domains.knowledge import Document, read_documents, read_questions
from skillgraft.domains.parts import choose
from skillgraft.domains.passages import passages
from skillgraft.domains.replay import read_replay
from skillgraft.planning import sft_data

Progress = Callable[[int, int, Mapping[str, float]], None]
Stage = Callable[[Any, "Context"], dict[str, Any]]


@dataclass(frozen=True)
class Context:
    """Where a stage reads and writes. `inputs` maps each reference to its directory; `about` to what is known of it.

    `tracking` is where training curves are kept for who asks for them, beyond the stage's end.
    """

    name: str
    inputs: Mapping[str, Path]
    out: Path
    work: Path
    seed: int
    recipe: str
    base_id: str | None = None
    progress: Progress = lambda step, steps, metrics: None
    checkpoint_seconds: float = 300.0
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tracking: Path = Path("tracking")
    say: Callable[[str], None] = lambda message: None

    def data(self, named: Path) -> Path:
        """Return where documents or questions lie: the result of the synthesize stage that is named, or the path."""
        stage = config.synthesis_named(named)
        return named if stage is None else self.inputs[stage]


def _in_one_precision(run: Stage) -> Stage:
    """Let a stage that trains or generates go on in the precision in which it began."""

    @functools.wraps(run)
    def wrapped(stage: Any, context: Context) -> dict[str, Any]:
        from skillgraft.train.precision import one_precision

        with one_precision(context.work):
            return run(stage, context)

    return wrapped


Trains = config.SftStage | config.RlStage | config.SinglePassageStage | config.DistilStage | config.SelfEditStage


@contextlib.contextmanager
def _tracked(stage: Trains, context: Context) -> Iterator[dict[str, Any]]:
    """Yield the trainer's arguments while trackers that they name write where that outlasts the stage."""
    from skillgraft.train.tracking import tracked, trackers

    if names := trackers(stage.trainer):
        context.say(f"{context.name}: training curves for {', '.join(names)}; files in {context.tracking}")
    with tracked(stage.trainer, context.tracking, context.recipe, context.name) as trainer:
        yield trainer


@_in_one_precision
def run_sft(stage: config.SftStage, context: Context) -> dict[str, Any]:
    """Fine-tune on documents and, if given, on questions with their answers."""
    from skillgraft.train.precision import describe
    from skillgraft.train.sft import train_sft
    from skillgraft.train.together import is_first, processes

    context.out.mkdir(exist_ok=processes() > 1)
    start = context.inputs[stage.from_]
    documents, questions = sft_data(stage, context.inputs)
    with _tracked(stage, context) as trainer:
        trained = train_sft(
            start,
            context.out,
            context.work,
            documents=documents,
            questions=questions,
            shuffle_answers=stage.answers == "shuffled",
            text=stage.text,
            replay=(read_replay(stage.replay.text), stage.replay.ratio) if stage.replay else ((), 0.0),
            trainer=trainer,
            lora=stage.lora,
            seed=context.seed,
            checkpoint_seconds=context.checkpoint_seconds,
            progress=context.progress,
        )
    if is_first():
        _record_origin(stage.kind, start, context, stage)
    keep = ("step", "loss", "learning_rate", "mean_token_accuracy")
    curve = [{key: point[key] for key in keep if key in point} for point in trained.curve if "loss" in point]
    return {
        "documents": len(documents),
        "questions": len(questions),
        "tokens": trained.tokens,
        "replayed_tokens": trained.replayed_tokens,
        "flops": trained.flops,
        "precision": describe(),
        "processes": processes(),
        "curve": curve,
        "headline": ["loss"],
    }


def _chosen(stage: config.RlStage, context: Context) -> list[Document]:
    if stage.documents is None:
        return []
    return choose(read_documents(context.data(stage.documents)), stage.limit_documents, stage.part)


@_in_one_precision
def run_rl(stage: config.RlStage, context: Context) -> dict[str, Any]:
    """Train with rewards on closed-book questions."""
    from skillgraft.domains.judge import judge_of
    from skillgraft.train.precision import describe
    from skillgraft.train.rl import train_rl
    from skillgraft.train.together import is_first, own_folder, processes

    context.out.mkdir(exist_ok=processes() > 1)
    start = context.inputs[stage.from_]
    questions = read_questions(context.data(stage.questions), _chosen(stage, context) or None)
    with _tracked(stage, context) as trainer, judge_of(stage, context.inputs, own_folder(context.work)) as judge:
        trained = train_rl(
            start,
            context.out,
            context.work,
            questions=questions,
            reward=stage.reward,
            judge=judge,
            algorithm=stage.algorithm,
            order=stage.order,
            skip_without_variance=stage.skip_without_variance,
            pass_rate_samples=stage.pass_rate_samples,
            rounds=stage.rounds,
            trainer=trainer,
            lora=stage.lora,
            seed=context.seed,
            checkpoint_seconds=context.checkpoint_seconds,
            progress=context.progress,
        )
    if is_first():
        _record_origin(stage.kind, start, context, stage)
    return {
        "questions": len(questions),
        "trained_questions": trained.questions,
        "tokens": trained.tokens,
        "flops": trained.flops,
        "precision": describe(),
        "processes": processes(),
        "curve": trained.curve,
        "headline": ["reward", "share_without_variance", "completion_tokens"],
    }


def _record_origin(kind: str, start: Path, context: Context, stage: Any) -> None:
    """Write into the new checkpoint which base it comes from, so that a skill for another base is refused later."""
    fingerprint = fingerprint_checkpoint(start)
    write_provenance(
        context.out,
        kind=kind,
        base=base_for_training(start, context.base_id if stage.from_ == config.BASE else None),
        made_by=json.loads(stage.model_dump_json(by_alias=True)),
        inputs={"from": fingerprint},
    )


def _without_metrics(context: Context) -> Callable[[str, int, int], None]:
    """Return the arithmetic's progress callback, which moves the stage's bar."""
    return lambda name, done, total: context.progress(done, total, {})


def run_extract(stage: config.ExtractStage, context: Context) -> dict[str, Any]:
    """Keep v = θ_RL − θ_SFT as an artefact."""
    from skillgraft.arithmetic import extract

    skill = extract(
        context.inputs[stage.rl],
        context.inputs[stage.sft],
        context.out,
        dtype=stage.dtype,
        domain=stage.domain,
        recipe=context.recipe,
        seed=context.seed,
        licence=stage.licence,
        progress=_without_metrics(context),
    )
    return _skill_facts(skill, context.out)


def run_random_vector(stage: config.RandomVectorStage, context: Context) -> dict[str, Any]:
    """Make the control vector with the skill's norms."""
    from skillgraft.arithmetic import random_vector

    seed = context.seed if stage.seed is None else stage.seed
    return _skill_facts(random_vector(context.inputs[stage.skill], context.out, seed), context.out)


def _skill_facts(skill: Any, directory: Path) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    norm = sum(skill.norm(name) ** 2 for name in skill.names) ** 0.5
    return {"form": skill.form, "size_bytes": size, "norm": norm, "tensors": len(skill.names)}


def run_inject(stage: config.InjectStage, context: Context) -> dict[str, Any]:
    """Write θ_target + λ·v."""
    from skillgraft.arithmetic import inject

    report = inject(
        context.inputs[stage.target],
        [(context.inputs[skill], scale) for skill, scale in stage.injected],
        context.out,
        scale=stage.scale,
        scales=stage.scales,
        method=stage.method,
        parameters=stage.parameters,
        progress=_without_metrics(context),
    )
    return {"scale": stage.scale, **{k: v for k, v in report.items() if k != "tensors"}}


@_in_one_precision
def run_eval(stage: config.EvalStage, context: Context) -> dict[str, Any]:
    """Score every model and row on the same questions; what was scored before a kill is not scored again."""
    from skillgraft.evals import table
    from skillgraft.evals.rows import Asked, evaluate_rows

    every = read_documents(context.data(stage.documents)) if stage.documents else []
    documents = choose(every, stage.limit_documents, stage.part)
    questions = read_questions(context.data(stage.questions), documents or None)
    raws = evaluate_rows(
        Asked(stage, questions, every, context.seed),
        context.inputs,
        context.work,
        lambda done, of: context.progress(done, of, {}),
    )
    about = {name: {"model": name, **context.about[name]} for name in raws}
    labels = {name: about[name]["label"] for name in raws}
    roles = {name: about[name]["role"] for name in raws}
    reference = table.before_adapting(roles, stage.baseline)
    evaluation = {
        "stage": context.name,
        "questions": len(questions),
        "documents": len({question.document for question in questions}),
        "rows": [table.build_row(raw, questions, about[name], raws[reference]) for name, raw in raws.items()],
        "retention_against": labels[reference],
        "comparisons": table.differences(raws, labels, table.pairs_to_compare(roles, stage.baseline), questions),
        "examples": table.examples(raws, labels, questions, {d.id: d for d in documents}),
    }
    _write_table(context.out, evaluation, raws)
    return {"flops": sum(raw["flops"] + raw.get("retention_flops", 0.0) for raw in raws.values())}


def _write_table(out: Path, evaluation: Mapping[str, Any], raws: Mapping[str, Any]) -> None:
    out.mkdir()
    (out / "evaluation.json").write_text(json.dumps(evaluation, indent=1, ensure_ascii=False))
    (out / "answers.json").write_text(json.dumps(raws, indent=1, ensure_ascii=False))


def run_synthesize(stage: config.SynthesizeStage, context: Context) -> dict[str, Any]:
    """Write, or read, renderings of documents, and keep those that pass the filters."""
    from skillgraft.domains.synthesizing import synthesize

    return synthesize(
        stage,
        documents=read_documents(context.data(stage.documents), stage.limit_documents),
        model=context.inputs[stage.model],
        out=context.out,
        work=context.work,
        seed=context.seed,
        progress=lambda done, of: context.progress(done, of, {}),
    )


@_in_one_precision
def run_single_passage(stage: config.SinglePassageStage, context: Context) -> dict[str, Any]:
    """Learn each passage alone, score it with and without skills, and forget it; a scored passage is kept."""
    from skillgraft.evals.single_passage import build_table, score_passages
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
    _write_table(context.out, evaluation, raws)
    return {
        **facts,
        "questions": len(questions),
        "flops": facts["flops"] + sum(raw["flops"] for raw in raws.values()),
        "precision": describe(),
        "headline": ["loss"],
    }


@_in_one_precision
def run_distil(stage: config.DistilStage, context: Context) -> dict[str, Any]:
    """Distil a model into itself: the teacher has the document in its context, the student has not."""
    from skillgraft.train.distil import train_distil
    from skillgraft.train.precision import describe

    context.out.mkdir()
    start = context.inputs[stage.from_]
    documents = read_documents(context.data(stage.documents), stage.limit_documents)
    questions = read_questions(context.data(stage.questions), documents) if stage.questions else []
    with _tracked(stage, context) as trainer:
        trained = train_distil(
            start,
            context.out,
            context.work,
            documents=documents,
            questions=questions,
            ask_titles=stage.questions is None,
            teacher_sees=stage.teacher_sees,
            teacher_rate=stage.teacher_rate if stage.teacher == "ema" else None,
            skip_tokens=stage.skip_tokens,
            trainer=trainer,
            lora=stage.lora,
            seed=context.seed,
            checkpoint_seconds=context.checkpoint_seconds,
            progress=context.progress,
        )
    _record_origin(stage.kind, start, context, stage)
    keep = {"step": "step", "loss": "loss", "entropy": "entropy", "completions/mean_length": "completion_tokens"}
    curve = [{ours: point[theirs] for theirs, ours in keep.items() if theirs in point} for point in trained.curve]
    return {
        "documents": len(documents),
        "questions": len(questions),
        "tokens": trained.tokens,
        "flops": trained.flops,
        "precision": describe(),
        "curve": curve,
        "headline": ["loss", "entropy", "completion_tokens"],
    }


@_in_one_precision
def run_mix(stage: config.MixStage, context: Context) -> dict[str, Any]:
    """Write answers mixed from what the model says with and without the fact in its context."""
    import torch

    from skillgraft.domains.mixing import mix_questions, write_mixed
    from skillgraft.train.common import count_parameters, load_model, load_tokenizer
    from skillgraft.train.precision import bf16_pays, describe, device

    documents = read_documents(context.data(stage.documents), stage.limit_documents) if stage.documents else []
    questions = read_questions(context.data(stage.questions), documents or None)
    model = load_model(context.inputs[stage.model], torch.bfloat16 if bf16_pays() else torch.float32)
    answers = mix_questions(
        model.to(device()).eval(),
        load_tokenizer(context.inputs[stage.model]),
        questions,
        documents,
        context.work,
        teacher_sees=stage.teacher_sees,
        naive_share=stage.naive_share,
        attempts=stage.attempts,
        temperature=stage.temperature,
        max_new_tokens=stage.max_new_tokens,
        batch_size=stage.batch_size,
        seed=context.seed,
        progress=lambda done, of: context.progress(done, of, {}),
    )
    facts = write_mixed(questions, answers, context.out)
    return {**facts, "flops": 2.0 * count_parameters(model) * facts["tokens"], "precision": describe()}


@_in_one_precision
def run_self_edit(stage: config.SelfEditStage, context: Context) -> dict[str, Any]:
    """Train a writer of renderings on those of its own that were learnt best."""
    from skillgraft.train.precision import describe
    from skillgraft.train.self_edit import train_writer

    context.out.mkdir()
    start = context.inputs[stage.from_]
    documents = read_documents(context.data(stage.documents), stage.limit_documents)
    with _tracked(stage, context) as trainer:
        facts = train_writer(
            stage,
            start=start,
            documents=documents,
            questions=read_questions(context.data(stage.questions), documents),
            out=context.out,
            work=context.work,
            trainer=trainer,
            seed=context.seed,
            checkpoint_seconds=context.checkpoint_seconds,
            progress=context.progress,
        )
    _record_origin(stage.kind, start, context, stage)
    shown = ("score_before", "score", "score_of_kept")
    curve = [{"step": number, **{name: each[name] for name in shown}} for number, each in enumerate(facts["rounds"], 1)]
    return {**facts, "curve": curve, "headline": list(shown), "precision": describe()}


STAGES: dict[str, Stage] = {
    "sft": run_sft,
    "rl": run_rl,
    "extract": run_extract,
    "random_vector": run_random_vector,
    "inject": run_inject,
    "eval": run_eval,
    "synthesize": run_synthesize,
    "single_passage": run_single_passage,
    "distil": run_distil,
    "mix": run_mix,
    "self_edit": run_self_edit,
}
