"""What `make check` leaves out is marked: an unmarked test can neither start a Python nor train."""

import subprocess
import sys

import pytest
from transformers import Trainer

from tests.children import children

STARTS = [sys.executable, "-c", "print(1)"]


def test_an_unmarked_test_starts_no_process():
    with pytest.raises(pytest.fail.Exception, match="mark it `process`"):
        subprocess.run(STARTS)
    with pytest.raises(pytest.fail.Exception, match="mark this test `process`"):
        children().Process(target=print).start()


@pytest.mark.process
def test_a_marked_one_does():
    assert subprocess.check_output(STARTS) == b"1\n"


def test_an_unmarked_test_trains_nothing():
    with pytest.raises(pytest.fail.Exception, match="mark this test `train`"):
        Trainer._inner_training_loop(None)
