"""Several processes of one run, as `accelerate launch` and `torchrun` start them.

The first process runs the recipe as if it were alone: it plans, locks, writes, reports and prints. The others wait for
its orders. For a stage of a kind that is `parallel` it orders them to run that too, and all meet in a process group in
which Transformers' trainers train data-parallel. Between such stages there is no group and the launcher's variables
are hidden, so that everything else sees one process.

What fails in another process is told to the first, which raises it as its own; the other goes without a word. Where the
first ends, for whatever reason, the launcher ends the others.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from skillgraft import errors
from skillgraft.errors import SkillgraftError
from skillgraft.support.rank import is_first

if TYPE_CHECKING:
    from skillgraft.stages.context import Context, StageResult
    from skillgraft.stages.planned import PlannedStage

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
"""By which a launcher tells a process which of how many it is."""

SHARDING = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM")
"""By which `accelerate launch` says that it is configured to cut the model itself into parts."""

TIMEOUT = timedelta(hours=12)
"""Timeout of a process that waits for the others of its group. One that dies is noticed at once; this is for the
first, which measures pass rates before RL while the others wait."""

GRACE_SECONDS = 30.0
"""How long after another's failure the first may stay in what it is doing: a GPU's collective waits for ever."""


@dataclass
class Team:
    """The processes of one run; alone, `size` is 1 and nothing else is there."""

    size: int = 1
    rank: int = 0
    store: Any = None
    variables: Mapping[str, str] = field(default_factory=dict)
    orders: int = 0

    def run(self, planned: PlannedStage, context: Context) -> StageResult:
        """Run a stage, with all processes where its kind allows, and return its result; for the first process."""
        assert planned.kind.run is not None
        if self.size == 1 or not planned.kind.parallel:
            return planned.kind.run(planned.settings, context)
        from skillgraft.models.precision import one_precision
        from skillgraft.stages.context import SILENT

        with one_precision(context.work):  # decided before the others look
            self._order((planned.settings, replace(context, reporter=SILENT)))
        try:
            # A launcher that sees another process die ends this one, which has still to say why.
            with _handling(signal.SIGTERM, signal.SIG_IGN), self._watching(), self._group():
                return planned.kind.run(planned.settings, context)
        except (SkillgraftError, KeyboardInterrupt):
            raise
        except Exception as error:
            failure = self._told() or _lost(error)
            if failure is not None:
                raise failure from error
            raise

    def serve(self) -> NoReturn:
        """Do what the first process orders until it ends, then end; for every other process."""
        from skillgraft.stages import KINDS

        with contextlib.suppress(Exception):  # the first is gone, and the store with it
            while (order := self._next_order()) is not None:
                settings, context = order
                run = KINDS[settings.kind].run
                assert run is not None
                try:
                    with self._group():
                        run(settings, context)
                except BaseException as error:
                    self.store.set(f"failed-{self.rank}", pickle.dumps(_as_told(error, self.rank, self.size)))
                    break
        raise SystemExit(0)  # to the launcher: success or failure is the first one's to say

    def end(self) -> None:
        """Let the others go; for the first process."""
        if self.size > 1:
            with contextlib.suppress(Exception):
                self._order(None)

    def _order(self, order: Any) -> None:
        self.store.set(f"order-{self.orders}", pickle.dumps(order))
        self.orders += 1

    def _next_order(self) -> Any:
        from torch.distributed import DistStoreError

        key = f"order-{self.orders}"
        self.orders += 1
        with _handling(signal.SIGINT, signal.SIG_DFL):  # Python's own would not be called while it waits
            while True:
                with contextlib.suppress(DistStoreError):  # nothing yet
                    self.store.wait([key], timedelta(minutes=5))
                    return pickle.loads(self.store.get(key))

    @contextlib.contextmanager
    def _group(self) -> Iterator[None]:
        """Join the process group of one stage, with the launcher's variables in sight."""
        import torch
        from accelerate.state import AcceleratorState
        from torch import distributed

        from skillgraft.models.precision import device
        from skillgraft.train.data_parallel import agree

        if device().type != "cpu":
            torch.accelerator.set_device_index(int(self.variables.get("LOCAL_RANK", "0")))
        backend = distributed.get_default_backend_for_device(device())
        distributed.init_process_group(
            backend,
            store=distributed.PrefixStore(f"group-{self.orders}", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=TIMEOUT,
        )
        os.environ.update(self.variables)
        well = False
        try:
            yield
            agree()  # the others wait for the first to write what was trained
            well = True
        finally:
            for name in self.variables:
                os.environ.pop(name, None)
            AcceleratorState._reset_state(reset_partial_state=True)
            if well or backend == "gloo":  # after a failure NCCL would wait for what never comes
                distributed.destroy_process_group()

    def _told(self) -> BaseException | None:
        """Return the first failure that another process has told."""
        for rank in range(1, self.size):
            if self.store.check([f"failed-{rank}"]):
                name, text = pickle.loads(self.store.get(f"failed-{rank}"))
                return KeyboardInterrupt() if name == "KeyboardInterrupt" else getattr(errors, name, RuntimeError)(text)
        return None

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """End this process if it stays in a collective meanwhile that another has left by failing."""
        done = threading.Event()
        mine = replace(self, store=self.store.clone())

        def watch() -> None:
            with contextlib.suppress(Exception):  # the launcher is gone, and its store
                while not done.wait(1.0):
                    if (failure := mine._told()) is not None and not done.wait(GRACE_SECONDS):
                        print(f"error {failure}", file=sys.stderr, flush=True)
                        os._exit(2)

        threading.Thread(target=watch, daemon=True).start()
        try:
            yield
        finally:
            done.set()


@contextlib.contextmanager
def _handling(number: signal.Signals, handler: signal.Handlers) -> Iterator[None]:
    """Handle a signal by `handler` meanwhile; where an error ends the block, from then on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    yield
    signal.signal(number, before)


def _as_told(error: BaseException, rank: int, size: int) -> tuple[str, str]:
    """Return an error's class and text: its own where it is for a person, else the traceback."""
    if isinstance(error, SkillgraftError | KeyboardInterrupt):
        return type(error).__name__, str(error)
    lines = "".join(traceback.format_exception(error))
    return "RuntimeError", f"process {rank} of {size} failed:\n{lines}"


def _lost(error: Exception) -> SkillgraftError | None:
    """Return what a broken connection to another process means; None for any other error."""
    from torch.distributed import DistError

    if not isinstance(error, DistError) and "gloo" not in str(error):
        return None
    return SkillgraftError(
        "another process of this run ended without a word, as by a kill for want of memory; see the system's log, then "
        "start the same command again, which resumes from the last checkpoint"
    )


@contextlib.contextmanager
def joined() -> Iterator[Team]:
    """Yield the team of this process, for a whole run; any but the first serves in it and ends here (`SystemExit`).

    Raises `SkillgraftError`, in the first process, where a launcher is not as it should be.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield Team()
        return
    try:
        team = _meet()
    except SkillgraftError:
        if is_first():
            raise
        raise SystemExit(0) from None
    if team.rank:
        team.serve()
    try:
        yield team
    finally:
        team.end()


def _meet() -> Team:
    """Connect to the launcher's key-value store and hide its variables."""
    from torch import distributed

    from skillgraft.models.precision import device

    size = os.environ["WORLD_SIZE"]
    if sharding := [name for name in SHARDING if os.environ.get(name, "").lower() == "true"]:
        raise SkillgraftError(
            f"the launcher is configured to cut the model into parts ({sharding[0]}); expected plain data parallelism: "
            "accelerate launch --multi_gpu"
        )
    here, seen = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), _devices(device().type)
    if seen is not None and here > seen:
        raise SkillgraftError(
            f"the launcher started {here} processes on a machine with {seen} GPUs in sight; expected at most one each: "
            f"--num_processes {seen}"
        )
    try:
        store, rank, count = next(distributed.rendezvous("env://", timeout=timedelta(minutes=5)))
    except (ValueError, RuntimeError, OSError) as error:
        raise SkillgraftError(
            f"WORLD_SIZE is {size}, but the other processes cannot be met ({error}); start them by accelerate launch "
            "or torchrun, or unset WORLD_SIZE"
        ) from error
    variables = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]  # the recipe and the machine decide the precision
    return Team(count, rank, store, variables)


def _devices(kind: str) -> int | None:
    """Return how many accelerators are in sight; None on the CPU, where any number of processes may run."""
    import torch

    return None if kind == "cpu" else torch.accelerator.device_count()
