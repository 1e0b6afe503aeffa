import socket
import urllib.request

import pytest

from tests.conftest import NetworkBlockedError


def test_sockets_are_blocked():
    with pytest.raises(NetworkBlockedError), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
        client.connect(("127.0.0.1", 9))


def test_http_is_blocked():
    with pytest.raises((NetworkBlockedError, OSError)):
        urllib.request.urlopen("http://127.0.0.1:9/", timeout=1)
