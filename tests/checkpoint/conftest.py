import shutil

import pytest

from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A checkpoint that no test changes."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def copied(tiny, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(tiny, tmp_path / "copied")
