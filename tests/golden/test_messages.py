"""The command line says to every mistake what it said: `messages.json`."""

import pytest

from tests.golden import messages
from tests.golden.compare import check, read_golden


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKILLGRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SKILLGRAFT_LIBRARY", str(tmp_path_factory.mktemp("library") / "skills"))
        return messages.results(tmp_path_factory.mktemp("messages").resolve())


def test_every_mistake_is_refused(found):
    assert [name for name, said in found["messages"].items() if said.startswith("0:")] == []


def test_the_same_words(found):
    check(read_golden("messages")["messages"], found["messages"])
