"""One function per kind of stage: (settings, context) -> facts, writing its result into `context.out`.

A stage sees its settings, the directories it refers to and a random seed, nothing else, so that it can run in another
process or on another machine. It makes `context.out` itself.
Heavy libraries are imported when a stage runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skillgraft.data.documents import read_documents, read_questions
from skillgraft.data.slices import choose
from skillgraft.recipe import schema
from skillgraft.stage_context import Context, Stage, in_one_precision
from skillgraft.training_stages import run_distil, run_rl, run_self_edit, run_sft, run_single_passage


def run_extract(stage: schema.ExtractStage, context: Context) -> dict[str, Any]:
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
        progress=context.progress,
    )
    return _skill_facts(skill, context.out)


def run_random_vector(stage: schema.RandomVectorStage, context: Context) -> dict[str, Any]:
    """Make the control vector with the skill's norms."""
    from skillgraft.arithmetic import random_vector

    seed = context.seed if stage.seed is None else stage.seed
    return _skill_facts(random_vector(context.inputs[stage.skill], context.out, seed), context.out)


def _skill_facts(skill: Any, directory: Path) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    norm = sum(skill.norm(name) ** 2 for name in skill.names) ** 0.5
    return {"form": skill.form, "size_bytes": size, "norm": norm, "tensors": len(skill.names)}


def run_inject(stage: schema.InjectStage, context: Context) -> dict[str, Any]:
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
        progress=context.progress,
    )
    return {"scale": stage.scale, **{k: v for k, v in report.items() if k != "tensors"}}


@in_one_precision
def run_eval(stage: schema.EvalStage, context: Context) -> dict[str, Any]:
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
        context.progress,
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
    table.write_table(context.out, evaluation, raws)
    return {"flops": sum(raw["flops"] + raw.get("retention_flops", 0.0) for raw in raws.values())}


def run_synthesize(stage: schema.SynthesizeStage, context: Context) -> dict[str, Any]:
    """Write, or read, renderings of documents, and keep those that pass the filters."""
    from skillgraft.data.synthesis.synthesize import synthesize

    return synthesize(
        stage,
        documents=read_documents(context.data(stage.documents), stage.limit_documents),
        model=context.inputs[stage.model],
        out=context.out,
        work=context.work,
        seed=context.seed,
        progress=context.progress,
    )


@in_one_precision
def run_mix(stage: schema.MixStage, context: Context) -> dict[str, Any]:
    """Write answers mixed from what the model says with and without the fact in its context."""
    import torch

    from skillgraft.data.synthesis.mixsd import mix_questions, write_mixed
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
        progress=context.progress,
    )
    facts = write_mixed(questions, answers, context.out)
    return {**facts, "flops": 2.0 * count_parameters(model) * facts["tokens"], "precision": describe()}


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
