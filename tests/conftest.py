"""No test reaches the network or the user's cache, and what costs time beside tests is spent once."""

import gc
import importlib.metadata
import os
import socket
import subprocess
import sys
from functools import cache
from itertools import count
from multiprocessing.process import BaseProcess

import pytest
import typer.testing

# One thread each: models are tiny, and several workers with the threads of all cores wait for each other for minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["SKILLGRAFT_PRECISION"] = "fp32"  # one arithmetic on every machine: values are compared


def pytest_collection_finish(session):
    freeze()


@pytest.fixture(autouse=True)
def frozen():
    """Take what was imported from the collector's reach: trainers collect garbage whenever one has trained."""
    if len(sys.modules) > _frozen[0] + 50:
        freeze()


_frozen = [0]


def freeze():
    gc.collect()
    gc.freeze()
    _frozen[0] = len(sys.modules)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory):
    """Let one worker compile a kernel that is not kept yet, and the others load it: the largest takes eight seconds."""
    from skillgraft.support import compiled
    from tests.once import alone, shared

    compile_and_keep = compiled.Compiled._compile_and_keep

    def load_or_compile(self, key):
        with alone(shared(tmp_path_factory) / "kernels.lock"):
            return compiled._read(self._name, key) or compile_and_keep(self, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled.Compiled, "_compile_and_keep", load_or_compile)
        yield


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """A stage and a checkpoint write out all disks of the machine: see `tests/support/test_written_out.py`."""
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture(autouse=True)
def as_marked(monkeypatch, request):
    """Fail a test that starts a Python or trains a model without saying so by a mark: `make check` leaves these out."""
    marks = {mark.name for mark in request.node.iter_markers()}
    if marks & {"docs", "slow"}:
        return
    if "process" not in marks:
        started = subprocess.Popen.__init__

        def start(self, args, *rest, **settings):
            if not isinstance(args, str | bytes | os.PathLike) and sys.executable in list(args):
                pytest.fail("this test starts a process: mark it `process`")
            started(self, args, *rest, **settings)

        monkeypatch.setattr(subprocess.Popen, "__init__", start)
        monkeypatch.setattr(BaseProcess, "start", _unmarked("process"))
    if "train" not in marks and "transformers.trainer" in sys.modules:
        trainer = sys.modules["transformers.trainer"].Trainer
        monkeypatch.setattr(trainer, "_inner_training_loop", _unmarked("train"))


def _unmarked(mark):
    return lambda *arguments, **settings: pytest.fail(f"mark this test `{mark}`")


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A tiny recipe that was run, for tests that change nothing in it; `copy` makes another for those that do."""
    from tests.finished import run_once
    from tests.once import once

    return once(tmp_path_factory, "finished", run_once)[1]


# Read from every package's metadata for every artifact, and made anew for every command.
importlib.metadata.version = cache(importlib.metadata.version)
typer.testing._get_command = cache(typer.testing._get_command)


class NetworkBlockedError(RuntimeError):
    """A test tried to reach the network."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch, request):
    if request.node.get_closest_marker("slow"):
        return

    loopback = request.node.get_closest_marker("loopback") is not None
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, _local_only(getattr(socket.socket, name), loopback))


def _local_only(connect, loopback):
    def checked(self, address):
        if self.family != socket.AF_UNIX and not (loopback and address[0] == "127.0.0.1"):
            raise NetworkBlockedError(f"a test tried to connect to {address}")
        return connect(self, address)

    return checked


@pytest.fixture(scope="session")
def homes(tmp_path_factory):
    """A folder for each test: its cache and its library."""
    folder, numbers = tmp_path_factory.mktemp("homes"), count()
    return lambda: folder / str(next(numbers))


@pytest.fixture(autouse=True)
def own_cache(homes, monkeypatch, request):
    if not request.node.get_closest_marker("slow"):
        home = homes()
        (home / "cache").mkdir(parents=True)
        monkeypatch.setenv("SKILLGRAFT_CACHE", str(home / "cache"))
        monkeypatch.setenv("SKILLGRAFT_LIBRARY", str(home / "library" / "skills"))
