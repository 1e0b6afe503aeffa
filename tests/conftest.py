"""No test reaches the network or the user's cache, and what costs time beside tests is spent once."""

import gc
import os
import socket
import sys

import pytest

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


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """A stage and a checkpoint write out all disks of the machine: see `tests/support/test_written_out.py`."""
    monkeypatch.setattr(os, "sync", lambda: None)


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


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch, request):
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setenv("SKILLGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        monkeypatch.setenv("SKILLGRAFT_LIBRARY", str(tmp_path_factory.mktemp("library") / "skills"))
