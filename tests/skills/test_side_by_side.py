"""Several tensors at once: what comes back is in order, an error comes in its turn, threads end."""

import threading

import pytest
import torch

from skillgraft.arithmetic import extract
from skillgraft.compression.side_by_side import WORKING_BYTES, side_by_side
from skillgraft.support import resources
from tests.tiny import tiny_checkpoint, tiny_finetune


@pytest.fixture(scope="module")
def skill(tmp_path_factory):
    folder = tmp_path_factory.mktemp("skill")
    tiny_checkpoint(folder / "sft")
    return extract(tiny_finetune(folder / "sft", folder / "rl"), folder / "sft", folder / "skill")


@pytest.mark.parametrize("cores", [1, 4])
def test_in_the_order_given(skill, cores, monkeypatch):
    monkeypatch.setattr(resources, "cores", lambda: cores)
    names, last = skill.names[:6], threading.Event()

    def work(name, _):
        if cores > 1 and name == names[0]:
            assert last.wait(60), "the second waits for the first"
        if name == names[1]:
            last.set()
        return name.upper()

    assert list(side_by_side(skill, names, work)) == [(name, name.upper()) for name in names]


def test_an_error_comes_in_its_turn_and_nothing_stays(skill):
    threads, running = torch.get_num_threads(), threading.active_count()

    def work(name, _):
        if name == skill.names[3]:
            raise ValueError(name)

    seen = []
    with pytest.raises(ValueError, match=skill.names[3]):
        seen.extend(name for name, _ in side_by_side(skill, skill.names, work))
    assert torch.get_num_threads() == threads
    assert threading.active_count() == running


def test_no_more_at_once_than_memory_holds(skill, monkeypatch):
    largest = max(skill.entry(name).elements for name in skill.names)
    monkeypatch.setattr(resources, "cores", lambda: 8)
    monkeypatch.setattr(resources, "memory", lambda: resources.Memory(1 << 40, 2 * WORKING_BYTES * largest))
    lock, at_once, most = threading.Lock(), 0, 0

    def work(name, _):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threading.Event().wait(0.01)
        with lock:
            at_once -= 1

    list(side_by_side(skill, skill.names, work))
    assert most == 2
