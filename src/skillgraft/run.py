"""THE MAIN PATH: recipe -> plan -> stages -> manifest -> report.

    1. read and check the recipe                   recipe.load
    2. find the base model                         checkpoint.default_model
    3. plan: address every stage, check it         pipeline.plan, pipeline.preflight
    4. run what is not finished, in order          stages.KINDS
    5. write run.json, report.json, report.html    report

A finished stage lies under `<runs>/stages/<kind>-<hash>` and is never run again. An unfinished one works in
`<hash>.work` beside it, from which the next run resumes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from skillgraft.checkpoint.default_model import resolve_base
from skillgraft.checkpoint.layout import read_layout
from skillgraft.checkpoint.tokenizer import tokenizer_identity
from skillgraft.checkpoint.writer import storage_error
from skillgraft.errors import DataError, SkillgraftError, StorageError, naming
from skillgraft.evals.evaluation import Evaluation
from skillgraft.pipeline.contamination import check_contamination
from skillgraft.pipeline.executors.launcher import Team, joined
from skillgraft.pipeline.plan import plan
from skillgraft.pipeline.preflight import check_plan
from skillgraft.recipe.load import load_recipe
from skillgraft.recipe.schema import Recipe
from skillgraft.settings.base import is_local
from skillgraft.stages.context import Context, Reporter
from skillgraft.stages.planned import RECORD, PlannedStage
from skillgraft.support.lock import exclusive_lock
from skillgraft.support.progress import NO_METRICS
from skillgraft.support.resources import release_memory


class Watcher(Protocol):
    """Who is told how the run goes: the terminal's stage tree, plain lines, or a script."""

    def planned(self, recipe: Recipe, base: Path, stages: Sequence[PlannedStage]) -> None:
        """Show what will run: called once, before the first stage."""

    def say(self, message: str) -> None:
        """Show one line that belongs to no stage."""

    def started(self, stage: PlannedStage) -> None:
        """Show that a stage begins or goes on."""

    def moved(self, stage: PlannedStage, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Show a stage's progress and its latest metrics."""

    def finished(self, stage: PlannedStage, seconds: float, cached: bool) -> None:
        """Show that a stage is done."""

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        """Show that a stage ended without a result; `KeyboardInterrupt`: it was stopped."""


@dataclass(frozen=True)
class Run:
    """A finished run: its directory, the stages' directories by name, the evaluations, the report's path."""

    directory: Path
    stages: dict[str, Path]
    evaluations: list[Evaluation]
    report: Path
    cached: bool


def prepare(
    recipe_file: Path, overrides: Iterable[str], runs: Path, say: Callable[[str], None]
) -> tuple[Recipe, Path, list[PlannedStage]]:
    """Return the checked recipe, the base's directory and the plan: steps 1 to 3, which run nothing."""
    # 1. Read and check the recipe.
    recipe = load_recipe(recipe_file, overrides)
    # 2. Find the base model.
    with naming("base"):
        base = resolve_base(recipe.base, say)
        read_layout(base)
        tokenizer_identity(base)
    # 3. Plan: address every stage.
    return recipe, base, plan(recipe, base, runs.resolve() / "stages")


def run(
    recipe_file: str | Path,
    *,
    overrides: Iterable[str] = (),
    runs: str | Path = "runs",
    watcher: Watcher | None = None,
    checkpoint_seconds: float = 300.0,
) -> Run:
    """Run the recipe in `recipe_file`, skipping what is finished, and return what it made.

    `overrides` are strings such as `stages.grafted.scale=0.5`. Trainer checkpoints are written every
    `checkpoint_seconds`, so that a killed run loses at most about that much.

    Of several processes that a launcher started, the first does this with the others' help; the others end here, by
    `SystemExit` (see `pipeline.executors.launcher`).

    Raises:
        SkillgraftError: something in the recipe, the data or the machine; finished stages are kept.
    """
    with joined() as team:
        return _run(Path(recipe_file), tuple(overrides), Path(runs), watcher or Silent(), checkpoint_seconds, team)


def _run(
    recipe_file: Path,
    overrides: tuple[str, ...],
    runs: Path,
    watcher: Watcher,
    checkpoint_seconds: float,
    team: Team,
) -> Run:
    # Steps 1 to 3, and what only base, data and machine can tell of the plan.
    recipe, base, stages = prepare(recipe_file, overrides, runs, watcher.say)
    for remark in check_plan(stages, team.size):
        watcher.say(f"remark: {remark}")
    watcher.planned(recipe, base, stages)
    reused = {stage.name for stage in stages if stage.cached}
    # 4. Run what is not finished, in order.
    for stage in stages:
        check_contamination(stages, stage)
        if stage.cached:
            shutil.rmtree(stage.work, ignore_errors=True)  # left by a kill between the rename and the clean-up
            stage.lock.unlink(missing_ok=True)
            watcher.finished(stage, stage.record()["seconds"], cached=True)
            continue
        watcher.started(stage)
        try:
            record = run_stage(recipe, stages, stage, watcher, checkpoint_seconds, team)
        except BaseException as error:
            watcher.failed(stage, error)
            raise
        watcher.finished(stage, record["seconds"], cached=False)
        release_memory()
    # 5. Write the run's directory and the report.
    return _close(recipe, recipe_file, overrides, runs, stages, reused, watcher)


def run_stage(
    recipe: Recipe,
    stages: list[PlannedStage],
    planned: PlannedStage,
    watcher: Watcher,
    checkpoint_seconds: float,
    team: Team,
) -> dict[str, Any]:
    """Run one stage in its working folder, then move the result to its address in one rename; return its record."""
    with _lock(planned):
        if planned.cached:  # another run finished it while this one waited for the plan
            return planned.record()
        if planned.kind.read(planned.settings) != planned.data:
            raise DataError(f"stages.{planned.name}: its documents or questions changed since the plan; run again")
        out = planned.work / "output"
        shutil.rmtree(out, ignore_errors=True)
        timer = _Timer(planned.work / "seconds")

        def progress(step: int, steps: int, metrics: Mapping[str, float] = NO_METRICS, /) -> None:
            timer.tick()
            watcher.moved(planned, step, steps, metrics)

        by_name = {stage.name: stage for stage in stages}
        context = Context(
            name=planned.name,
            inputs=planned.inputs,
            out=out,
            work=planned.work,
            seed=recipe.seed,
            recipe=recipe.name,
            base_id=None if is_local(recipe.base) else recipe.base,
            checkpoint_seconds=checkpoint_seconds,
            about=planned.kind.rows(by_name, planned) if planned.kind.rows is not None else {},
            tracking=planned.directory.parents[1] / "tracking" / recipe.name / f"{planned.name}-{planned.key[:8]}",
            reporter=Reporter(progress, watcher.say),
        )
        try:
            with naming(f"stages.{planned.name}"):
                result = team.run(planned, context)
        except BaseException as error:
            shutil.rmtree(out, ignore_errors=True)
            if full := storage_error(error, planned.work):
                raise StorageError(f"stages.{planned.name}: {full}") from error
            raise
        finally:
            timer.write()
        record = {
            "name": planned.name,
            "kind": planned.kind.name,
            "key": planned.key,
            "settings": json.loads(planned.settings.model_dump_json(by_alias=True)),
            "inputs": {reference: str(path) for reference, path in planned.inputs.items()},
            "seconds": timer.seconds(),
            "facts": result.facts(),
        }
        (out / RECORD).write_text(json.dumps(record, indent=1))
        os.sync()  # a power cut must not leave a finished-looking folder with torn weights
        out.rename(planned.directory)
        shutil.rmtree(planned.work, ignore_errors=True)
        return record


class _Timer:
    """Seconds that a stage has cost over all runs that worked on it, kept in a file."""

    def __init__(self, file: Path) -> None:
        self._file, self._before, self._began = file, _read_seconds(file), time.monotonic()
        self._written = self._began

    def seconds(self) -> float:
        """Return the seconds so far."""
        return self._before + time.monotonic() - self._began

    def tick(self) -> None:
        """Write the seconds every ten: a kill must not lose what the stage has cost so far."""
        if time.monotonic() - self._written > 10:
            self._written = time.monotonic()
            self.write()

    def write(self) -> None:
        """Write the seconds; a disk that is full is reported by who writes the result."""
        with contextlib.suppress(OSError):
            self._file.write_text(str(self.seconds()))


def _read_seconds(file: Path) -> float:
    """Return what the stage has cost before; 0 where a kill tore the file."""
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return 0.0


def _lock(planned: PlannedStage) -> contextlib.AbstractContextManager[None]:
    """Return the lock of the stage's working folder, which is made; its file is removed with the lock."""
    try:
        planned.work.mkdir(parents=True, exist_ok=True)
        planned.lock.touch()
    except OSError as error:
        unwritable = StorageError(f"{planned.work} cannot be written: {error.strerror}; choose another --runs")
        raise storage_error(error, planned.work) or unwritable from error
    busy = SkillgraftError(
        f"stages.{planned.name}: another run is working on it in {planned.work}; wait for it or stop it"
    )
    return exclusive_lock(planned.lock, busy, remove=True)


def _close(
    recipe: Recipe,
    recipe_file: Path,
    overrides: tuple[str, ...],
    runs: Path,
    stages: list[PlannedStage],
    reused: set[str],
    watcher: Watcher,
) -> Run:
    """Write the run's directory: resolved recipe, manifest, links to the stages, report."""
    from skillgraft.report import write_report
    from skillgraft.report.change_map import former_geometry
    from skillgraft.report.gather import gather

    directory = runs.resolve() / recipe.name
    directory.mkdir(parents=True, exist_ok=True)
    resolved = yaml.safe_dump(
        json.loads(recipe.model_dump_json(by_alias=True, exclude_defaults=True)), sort_keys=False, allow_unicode=True
    )
    (directory / "recipe.yaml").write_text(resolved)
    for stage in stages:
        link = directory / stage.name
        if link.is_symlink():
            link.unlink()
        if not link.exists():
            link.symlink_to(stage.directory, target_is_directory=True)
    command = ["skillgraft", "run", str(recipe_file), *(part for each in overrides for part in ("--set", each))]
    again = shlex.join([*command, "--runs", str(runs)])

    def say_comparing(phase: str) -> None:
        watcher.say("report: comparing what SFT, RL and skill changed")

    facts = gather(recipe, recipe_file, resolved, again, stages, reused, former_geometry(directory), say_comparing)
    (directory / "run.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "evaluations"}, indent=1))
    report = write_report(facts, directory)
    everything = {stage.name: stage.directory for stage in stages}
    return Run(directory, everything, facts["evaluations"], report, len(reused) == len(stages))


class Silent:
    """The watcher of the Python API: shows nothing."""

    def planned(self, recipe: Recipe, base: Path, stages: Sequence[PlannedStage]) -> None:
        """Show nothing."""

    def say(self, message: str) -> None:
        """Show nothing."""

    def started(self, stage: PlannedStage) -> None:
        """Show nothing."""

    def moved(self, stage: PlannedStage, step: int, steps: int, metrics: Mapping[str, float]) -> None:
        """Show nothing."""

    def finished(self, stage: PlannedStage, seconds: float, cached: bool) -> None:
        """Show nothing."""

    def failed(self, stage: PlannedStage, error: BaseException) -> None:
        """Show nothing."""
