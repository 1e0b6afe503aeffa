import threading

import pytest

from skillgraft.support.lock import exclusive_lock


def test_a_held_lock_is_busy_and_a_released_one_is_free(tmp_path):
    file, busy = tmp_path / ".lock", RuntimeError("somebody works there")
    with exclusive_lock(file, busy), pytest.raises(RuntimeError, match="works there"), exclusive_lock(file, busy):
        pass
    with exclusive_lock(file, busy, remove=True):
        assert file.exists()
    assert not file.exists()


def test_who_waits_for_a_file_that_its_holder_removes_locks_the_new_one(tmp_path):
    file, order = tmp_path / ".lock", []

    def wait():
        with exclusive_lock(file):
            order.append(("second", file.exists()))

    with exclusive_lock(file, remove=True):
        other = threading.Thread(target=wait)
        other.start()
        other.join(0.2)
        order.append(("first", file.exists()))
    other.join()
    assert order == [("first", True), ("second", True)]
