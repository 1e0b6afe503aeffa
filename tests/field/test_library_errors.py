"""What a library or a user's own code raises while a trainer is built or runs is one sentence; the rest passes."""

import errno

import pytest
import torch
from transformers import AutoTokenizer

from skillgraft.data.tasks import Question
from skillgraft.errors import DataError, TrainingError
from skillgraft.train.guard import explained
from skillgraft.train.rl import train_rl
from tests.tiny import tiny_checkpoint


def test_what_a_library_raises_names_stage_library_and_place(tmp_path):
    with (
        pytest.raises(
            TrainingError, match=r"^sft: torch stopped with RuntimeError \(functional\.py, line \d+\): .*adapt:"
        ),
        explained("sft", tmp_path),
    ):
        torch.nn.functional.embedding(torch.tensor([0.5]), torch.zeros(2, 2))


def test_a_message_of_many_lines_becomes_one(tmp_path):
    with pytest.raises(TrainingError) as error, explained("rl", tmp_path):
        AutoTokenizer.from_pretrained(str(tmp_path / "nowhere"), local_files_only=True)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: out of memory"),
        DataError("ours"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=repr,
)
def test_what_passes_as_it_is(tmp_path, error):
    with pytest.raises(type(error)) as raised, explained("sft", tmp_path):
        raise error
    assert raised.value is error


def test_a_defect_of_ours_keeps_its_traceback(tmp_path):
    from skillgraft.models.decoding.sampling import draw

    with pytest.raises(TypeError), explained("rl", tmp_path):
        draw(torch.zeros(1, 2), None)


def shares_nothing(given):
    return 1 / 0


@pytest.mark.train
def test_a_reward_of_ones_own_that_fails_is_named_with_its_line(tmp_path):
    start = tiny_checkpoint(tmp_path / "start")
    for name in ("out", "work"):
        (tmp_path / name).mkdir()
    with pytest.raises(TrainingError, match=r"^rl: test_library_errors stopped with ZeroDivisionError \(") as error:
        train_rl(
            start,
            tmp_path / "out",
            tmp_path / "work",
            tasks=[Question("Vell", "When was Vell built?", ("1901",))],
            reward={f"{__name__}.shares_nothing": 1.0},
            trainer={"max_steps": 1, "per_device_train_batch_size": 8, "max_completion_length": 2},
        )
    assert str(error.value).endswith(": division by zero; mend that code")
    assert not list((tmp_path / "out").iterdir())
