"""No test reaches the network or the user's cache."""

import os
import socket

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["SKILLGRAFT_PRECISION"] = "fp32"  # one arithmetic on every machine: values are compared


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
