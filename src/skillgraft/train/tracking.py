"""Training curves in TensorBoard, Weights & Biases or trackio: the trainers' own `report_to`, off unless asked for."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from skillgraft.errors import RecipeError, did_you_mean

PLACES = ("TENSORBOARD_LOGGING_DIR", "WANDB_DIR")
"""Variables by which trackers are told where to write; one that is set already wins. trackio has a place of its own."""


def trackers(trainer: Mapping[str, Any]) -> list[str]:
    """Return what `report_to` of a `trainer:` mapping names; "all" is kept, "none" is nothing."""
    named = trainer.get("report_to") or []
    names = (
        [named] if isinstance(named, str) else named if isinstance(named, list) else []
    )  # the trainer refuses others
    return [] if names == ["none"] else names


def check_trackers(trainer: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for a tracker that is unknown or not installed; sends and writes nothing."""
    for name in trackers(trainer):
        if name == "all":
            continue
        if not isinstance(name, str) or name not in INTEGRATION_TO_CALLBACK:
            raise RecipeError(f"trainer: report_to names {name!r}{did_you_mean(str(name), INTEGRATION_TO_CALLBACK)}")
        try:
            INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            raise RecipeError(
                f"trainer: report_to names {name}, which cannot be used here ({error}); "
                "python -m pip install 'skillgraft[track]' brings tensorboard, wandb and trackio; or leave it out"
            ) from error


@contextlib.contextmanager
def tracked(trainer: Mapping[str, Any], folder: Path, recipe: str, stage: str) -> Iterator[dict[str, Any]]:
    """Yield `trainer` with names for its curves; until it ends, trackers write into `folder` unless told otherwise.

    The project is named like the recipe and the run like the stage. W&B keeps one run a process: it is closed here, or
    the next stage would go on in it.
    """
    if not trackers(trainer):
        yield dict(trainer)
        return
    wanted = {**dict.fromkeys(PLACES, str(folder)), "WANDB_PROJECT": recipe}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(added)
    try:
        yield {"run_name": stage, "project": recipe, **trainer}
    finally:
        for name in added:
            os.environ.pop(name, None)
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            wandb.finish()
