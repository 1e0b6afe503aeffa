import subprocess
import sys

import pytest

from skillgraft.support import rank


@pytest.mark.parametrize(
    ("variables", "number"),
    [({}, 0), ({"RANK": "0", "WORLD_SIZE": "2"}, 0), ({"RANK": "1", "WORLD_SIZE": "2"}, 1), ({"RANK": "3"}, 0)],
)
def test_without_a_process_group_the_launcher_says_the_rank(monkeypatch, variables, number):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (rank.rank(), rank.is_first(), rank.processes()) == (number, number == 0, 1)


def test_a_process_group_says_more_than_the_launcher(monkeypatch):
    class Group:
        is_available = is_initialized = staticmethod(lambda: True)
        get_rank, get_world_size = staticmethod(lambda: 2), staticmethod(lambda: 4)

    monkeypatch.setitem(sys.modules, "torch.distributed", Group)
    monkeypatch.delenv("RANK", raising=False)
    assert (rank.rank(), rank.is_first(), rank.processes()) == (2, False, 4)


@pytest.mark.process
def test_asking_loads_no_torch():
    code = "import sys; from skillgraft.support.rank import is_first; assert is_first() and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
