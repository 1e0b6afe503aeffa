"""THE MAIN PATH: recipe -> plan -> stages -> manifest -> report.

    1. read and check the recipe            recipe_file.load_recipe
    2. find the base model                  checkpoint.default_model.resolve_base
    3. plan: hash every stage, check it     planning.plan, plan_checks.check_plan
    4. run what is not finished, in order   stages.STAGES
    5. write run.json, report.json and report.html

A finished stage lies under `<runs>/stages/<kind>-<hash>` and is never run again. An unfinished one works in
`<hash>.work` beside it, from which the next run goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from skillgraft.checkpoint.default_model import resolve_base
from skillgraft.checkpoint.layout import read_layout
from skillgraft.checkpoint.tokenizer import tokenizer_identity
from skillgraft.checkpoint.writer import storage_error
from skillgraft.errors import DataError, SkillgraftError, StorageError, naming
from skillgraft.pipeline.contamination import check_leaks
from skillgraft.pipeline.executors.launcher import Team, joined
from skillgraft.pipeline.plan import RECORD, PlannedStage, data_of, plan
from skillgraft.pipeline.preflight import check_plan
from skillgraft.pipeline.row_labels import DESCRIBE
from skillgraft.recipe import schema
from skillgraft.recipe.load import load_recipe
from skillgraft.support.progress import NO_METRICS
from skillgraft.support.resources import release_memory


class Watcher(Protocol):
    """Who is told how the run goes: the terminal's stage tree, plain lines, or a script."""

    def planned(self, recipe: schema.Recipe, base: Path, stages: Sequence[PlannedStage]) -> None:
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
    evaluations: list[dict[str, Any]]
    report: Path
    cached: bool


def prepare(
    recipe_file: Path, overrides: Iterable[str], runs: Path, say: Callable[[str], None]
) -> tuple[schema.Recipe, Path, list[PlannedStage]]:
    """Return the checked recipe, the base's directory and the plan: steps 1 to 3, which run nothing."""
    recipe = load_recipe(recipe_file, overrides)
    with naming("base"):
        base = resolve_base(recipe.base, say)
        read_layout(base)
        tokenizer_identity(base)
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
    `checkpoint_seconds`, so that a killed run loses at most about so much.

    Of several processes that a launcher started, the first does this with the others' help; the others end here, by
    `SystemExit` (see `several`).

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
    recipe, base, stages = prepare(recipe_file, overrides, runs, watcher.say)
    for remark in check_plan(stages, team.size):
        watcher.say(f"remark: {remark}")
    watcher.planned(recipe, base, stages)
    reused = {stage.name for stage in stages if stage.cached}
    for stage in stages:
        check_leaks(stages, stage)
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
    return _close(recipe, recipe_file, overrides, runs, stages, reused, watcher)


def run_stage(
    recipe: schema.Recipe,
    stages: list[PlannedStage],
    planned: PlannedStage,
    watcher: Watcher,
    checkpoint_seconds: float,
    team: Team,
) -> dict[str, Any]:
    """Run one stage in its working folder, then move the result to its address in one rename; return its record."""
    from skillgraft.stage_context import Context

    with _locked(planned):
        if planned.cached:  # another run finished it while this one waited for the plan
            return planned.record()
        if data_of(planned.stage) != planned.data:
            raise DataError(f"stages.{planned.name}: its documents or questions changed since the plan; run again")
        out = planned.work / "output"
        shutil.rmtree(out, ignore_errors=True)
        began = time.monotonic()
        clock = planned.work / "seconds"
        before = _seconds_so_far(clock)
        said = [began]

        def moved(step: int, steps: int, metrics: Mapping[str, float] = NO_METRICS, /) -> None:
            if time.monotonic() - said[0] > 10:  # a kill must not lose what the stage has cost so far
                said[0] = time.monotonic()
                clock.write_text(str(before + said[0] - began))
            watcher.moved(planned, step, steps, metrics)

        context = Context(
            name=planned.name,
            inputs=planned.inputs,
            out=out,
            work=planned.work,
            seed=recipe.seed,
            recipe=recipe.name,
            progress=moved,
            base_id=None if schema.is_local(recipe.base) else recipe.base,
            checkpoint_seconds=checkpoint_seconds,
            about=DESCRIBE[planned.stage.kind](stages, planned) if planned.stage.kind in DESCRIBE else {},
            tracking=planned.directory.parents[1] / "tracking" / recipe.name / f"{planned.name}-{planned.key[:8]}",
            say=watcher.say,
        )
        try:
            with naming(f"stages.{planned.name}"):
                facts = team.run(planned.stage, context)
        except BaseException as error:
            shutil.rmtree(out, ignore_errors=True)
            if full := storage_error(error, planned.work):
                raise StorageError(f"stages.{planned.name}: {full}") from error
            raise
        finally:
            with contextlib.suppress(OSError):
                clock.write_text(str(before + time.monotonic() - began))
        record = {
            "name": planned.name,
            "kind": planned.stage.kind,
            "key": planned.key,
            "settings": json.loads(planned.stage.model_dump_json(by_alias=True)),
            "inputs": {reference: str(path) for reference, path in planned.inputs.items()},
            "seconds": before + time.monotonic() - began,
            "facts": facts,
        }
        (out / RECORD).write_text(json.dumps(record, indent=1))
        os.sync()  # a power cut must not leave a finished-looking folder with torn weights
        out.rename(planned.directory)
        shutil.rmtree(planned.work, ignore_errors=True)
        return record


def _seconds_so_far(clock: Path) -> float:
    """Return what the stage has cost before; 0 where a kill tore the file."""
    try:
        return float(clock.read_text())
    except (OSError, ValueError):
        return 0.0


@contextlib.contextmanager
def _locked(planned: PlannedStage) -> Iterator[None]:
    """Hold the stage's working folder for this process alone; the lock goes with the process, however it ends."""
    try:
        planned.work.mkdir(parents=True, exist_ok=True)
        lock = planned.lock.open("w")
    except OSError as error:
        unwritable = StorageError(f"{planned.work} cannot be written: {error.strerror}; choose another --runs")
        raise storage_error(error, planned.work) or unwritable from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SkillgraftError(
                f"stages.{planned.name}: another run is working on it in {planned.work}; wait for it or stop it"
            ) from error
        yield
        planned.lock.unlink(missing_ok=True)


def _close(
    recipe: schema.Recipe,
    recipe_file: Path,
    overrides: tuple[str, ...],
    runs: Path,
    stages: list[PlannedStage],
    reused: set[str],
    watcher: Watcher,
) -> Run:
    """Write the run's directory: resolved recipe, manifest, links to the stages, report."""
    from skillgraft.report import write_report
    from skillgraft.report.change_map import kept_geometry
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

    def comparing(phase: str) -> None:
        watcher.say("report: comparing what SFT, RL and skill changed")

    facts = gather(recipe, recipe_file, resolved, again, stages, reused, kept_geometry(directory), comparing)
    (directory / "run.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "evaluations"}, indent=1))
    report = write_report(facts, directory)
    everything = {stage.name: stage.directory for stage in stages}
    return Run(directory, everything, facts["evaluations"], report, len(reused) == len(stages))


class Silent:
    """The watcher of the Python API: shows nothing."""

    def planned(self, recipe: schema.Recipe, base: Path, stages: Sequence[PlannedStage]) -> None:
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
