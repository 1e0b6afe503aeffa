"""Trainer callbacks: a log that survives a kill, checkpoints that are known to be whole, a clean stop on Ctrl-C.

Of processes that train together the first logs; all save and stop at the same step.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from skillgraft.support.progress import Progress
from skillgraft.support.rank import is_first, processes
from skillgraft.train.data_parallel import agree

LOG = "log.jsonl"
"""In the working folder: a line of metrics for each logged step."""

_WHOLE = "skillgraft-whole"
"""Written into a trainer checkpoint after the trainer has finished it: one without was cut off by a kill."""


class KeepAlive(TrainerCallback):
    """Logs every step to `log.jsonl`, saves every `checkpoint_seconds`, stops after a checkpoint on Ctrl-C."""

    def __init__(self, workdir: Path, checkpoint_seconds: float, progress: Progress | None) -> None:
        self.log_file = workdir / LOG
        self.checkpoint_seconds = checkpoint_seconds
        self.progress = progress
        self.last_save = time.monotonic()
        self.interrupted = False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Append one line of metrics; a resumed run overwrites nothing, and `read_log` keeps the last line per step."""
        if not is_first():
            return
        record = {"step": state.global_step, "time": time.time(), **{k: v for k, v in logs.items() if _is_number(v)}}
        with self.log_file.open("a") as out:
            out.write(json.dumps(record) + "\n")
        if self.progress:
            self.progress(state.global_step, state.max_steps, record)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for a checkpoint when it is time, and for a stop when Ctrl-C was pressed."""
        if state.global_step >= state.max_steps:  # done: what was asked for is about to be written
            if self.interrupted:
                _tell("that was the last step, and the run goes on; Ctrl-C again stops it")
            self.interrupted = False
            return control
        due = is_first() and time.monotonic() - self.last_save >= self.checkpoint_seconds
        stop, due = agree(self.interrupted, due)
        self.interrupted |= stop  # a signal may have come since this process was asked: then it is asked next time
        if stop or due:
            control.should_save = True
            self.last_save = time.monotonic()
        control.should_training_stop = stop
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the checkpoint as whole, and only then drop the older ones."""
        agree()  # each process writes where its random numbers stand
        if not is_first():
            return
        newest = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        os.sync()
        (newest / _WHOLE).touch()
        for old in Path(args.output_dir).glob("checkpoint-*"):
            if old != newest:
                shutil.rmtree(old, ignore_errors=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def newest_checkpoint(workdir: Path) -> Path | None:
    """Return the newest whole trainer checkpoint under `workdir`, removing those that a kill cut off."""
    whole = []
    for folder in workdir.glob("checkpoint-*"):
        if (folder / _WHOLE).exists():
            whole.append(folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return max(whole, key=lambda folder: int(folder.name.rpartition("-")[2]), default=None)


def read_log(workdir: Path) -> list[dict[str, float]]:
    """Return the logged steps in order, the last record of a step winning, a torn last line left out."""
    file = workdir / LOG
    steps: dict[int, dict[str, float]] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        steps[record["step"]] = {**steps.get(record["step"], {}), **record}
    return [steps[step] for step in sorted(steps)]


@contextlib.contextmanager
def stop_on_interrupt(keeper: KeepAlive) -> Iterator[None]:
    """Turn the first Ctrl-C into a checkpoint and a stop after the current step; a second one stops at once.

    So does SIGTERM for processes that train together: it is what their launcher sends.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if keeper.interrupted:
            raise KeyboardInterrupt
        keeper.interrupted = True
        if is_first():
            again = "the launcher waits 30 s" if processes() > 1 else "Ctrl-C again stops at once"
            _tell(f"stopping after this step with a checkpoint; {again}")

    asking = [signal.SIGINT, *([signal.SIGTERM] if processes() > 1 else [])]
    before = {number: signal.signal(number, handler) for number in asking}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
    if keeper.interrupted:
        raise KeyboardInterrupt


def _tell(text: str) -> None:
    with contextlib.suppress(RuntimeError):  # in a signal handler: what it interrupted may be writing itself
        print(text, file=sys.stderr, flush=True)
