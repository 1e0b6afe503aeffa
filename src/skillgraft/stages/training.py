"""Training stages: what those that train or generate share, from a trainer's arguments to what is recorded of it."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skillgraft.adapters import get_adapter
from skillgraft.checkpoint.fingerprint import fingerprint_checkpoint
from skillgraft.checkpoint.layout import read_config
from skillgraft.checkpoint.provenance import base_for_training, write_provenance
from skillgraft.errors import RecipeError
from skillgraft.models.chat_template import with_template_arguments
from skillgraft.settings.base import BASE
from skillgraft.stages.context import Context, StageResult


def running_models(run: Callable[[Any, Context], StageResult]) -> Callable[[Any, Context], StageResult]:
    """Let a stage that trains or generates resume in the precision in which it began, with its template's arguments."""

    @functools.wraps(run)
    def wrapped(settings: Any, context: Context) -> StageResult:
        from skillgraft.models.precision import one_precision

        with one_precision(context.work), with_template_arguments(settings.chat_template_kwargs):
            return run(settings, context)

    return wrapped


@contextlib.contextmanager
def tracked_trainer(trainer: Mapping[str, Any], context: Context) -> Iterator[dict[str, Any]]:
    """Yield the trainer's arguments while trackers that they name write where that outlasts the stage."""
    from skillgraft.train.tracking import tracked, trackers

    if names := trackers(trainer):
        context.reporter.say(f"{context.name}: training curves for {', '.join(names)}; files in {context.tracking}")
    with tracked(trainer, context.tracking, context.recipe, context.name) as arguments:
        yield arguments


@contextlib.contextmanager
def training(settings: Any, context: Context) -> Iterator[dict[str, Any]]:
    """Yield the arguments that every trainer takes, and write the provenance of the checkpoint that it makes."""
    from skillgraft.train.data_parallel import is_first, processes

    context.out.mkdir(exist_ok=processes() > 1)
    start = context.inputs[settings.from_]
    with tracked_trainer(settings.trainer, context) as trainer:
        yield {
            "model_dir": start,
            "out": context.out,
            "workdir": context.work,
            "trainer": trainer,
            "adapter": get_adapter(settings.adapt),
            "seed": context.seed,
            "checkpoint_seconds": context.checkpoint_seconds,
            "progress": context.progress,
        }
    if is_first():  # so that a skill for another base is refused later
        write_provenance(
            context.out,
            kind=settings.kind,
            base=base_for_training(start, context.base_id if settings.from_ == BASE else None),
            made_by=json.loads(settings.model_dump_json(by_alias=True)),
            inputs={"from": fingerprint_checkpoint(start)},
        )


def trained_result(
    trained: Any, details: Mapping[str, Any], curve: Sequence[Mapping[str, float]], headline: Sequence[str]
) -> StageResult:
    """Return what is recorded of a training run: its cost, what it ran on, its curve."""
    from skillgraft.models.precision import describe
    from skillgraft.train.data_parallel import processes

    return StageResult(details, trained.tokens, trained.flops, describe(), processes(), curve, headline)


def renamed_curve(points: Iterable[Mapping[str, float]], names: Mapping[str, str]) -> list[dict[str, float]]:
    """Return a trainer's log under our names, without what it does not hold."""
    return [{ours: point[theirs] for theirs, ours in names.items() if theirs in point} for point in points]


def check_adaptation(trainer: Mapping[str, Any], start: Path | None, *adapts: Mapping[str, Any] | None) -> None:
    """Raise for trackers that are not installed, a start that cannot be trained, and adapters that do not fit it."""
    from skillgraft.adapters.lora import empty_model
    from skillgraft.models.preflight import check_checkpoint
    from skillgraft.train.tracking import check_trackers

    check_trackers(trainer)
    if start is not None:
        check_checkpoint(start)
        if trainer.get("router_aux_loss_coef") and "router_aux_loss_coef" not in json.dumps(read_config(start)):
            raise RecipeError(
                "trainer: router_aux_loss_coef is for mixtures of experts, and the start is none; leave it out"
            )
    for adapt in adapts:
        adapter = get_adapter(adapt)
        if adapter is not None and start is not None and (model := empty_model(start)) is not None:
            adapter.check(model)
