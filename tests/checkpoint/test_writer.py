import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors import SafetensorError

from skillgraft.checkpoint import atomic_directory, check_free_space
from skillgraft.checkpoint.writer import resumable_directory
from skillgraft.errors import OutputExistsError, StorageError


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def write_and_raise(out, error, **settings):
    """Write one file into the temporary directory, then raise."""
    with atomic_directory(out, **settings) as partial:
        (partial / "x").write_text("1")
        raise error


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_directory_appears_complete_at_the_end(tmp_path):
    out = tmp_path / "deep" / "er" / "out"
    with atomic_directory(out) as partial:
        assert partial == out.parent / f".out.partial-{os.getpid()}"
        (partial / "sub").mkdir()
        (partial / "sub" / "x").write_text("1")
        assert not out.exists()
    assert (out / "sub" / "x").read_text() == "1"
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_nothing_stays_after_an_exception(tmp_path, error):
    with pytest.raises(type(error)) as caught:
        write_and_raise(tmp_path / "out", error)
    assert caught.value is error
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", ["file", "directory", "link"])
def test_an_existing_output_is_refused(tmp_path, make):
    out = tmp_path / "out"
    {"file": lambda: out.write_text("old"), "directory": out.mkdir, "link": lambda: out.symlink_to("nowhere")}[make]()
    with pytest.raises(OutputExistsError, match=r"out exists already.*choose another output or delete it"):
        write_and_raise(out, AssertionError("the block must not start"))
    assert names(tmp_path) == ["out"]


def test_an_output_that_appears_meanwhile_is_not_overwritten(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OutputExistsError, match="exists already"), atomic_directory(out):
        out.mkdir()
    assert names(tmp_path) == ["out"]
    assert names(out) == []


@pytest.mark.process
def test_leftovers_of_dead_processes_are_removed(tmp_path):
    stale = tmp_path / f".out.partial-{dead_pid()}"
    earlier = tmp_path / f".out.partial-{os.getpid()}"
    running = tmp_path / f".out.partial-{os.getppid()}"
    others = [tmp_path / f".other.partial-{dead_pid()}", tmp_path / ".out.partial-x", running]
    for path in (stale, earlier, *others):
        path.mkdir()
        (path / "x").write_text("1")
    with atomic_directory(tmp_path / "out") as partial:
        assert names(partial) == []
    assert names(tmp_path) == sorted(["out", *(path.name for path in others)])


@pytest.mark.process
def test_a_killed_process_leaves_no_output_and_the_next_run_cleans_up(tmp_path):
    out = tmp_path / "out"
    script = (
        "import sys, time\nfrom skillgraft.checkpoint import atomic_directory\n"
        f"with atomic_directory({str(out)!r}) as partial:\n"
        "    (partial / 'x').write_text('1')\n    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert names(tmp_path) == [f".out.partial-{process.pid}"]
    with atomic_directory(out):
        pass
    assert names(tmp_path) == ["out"]


@pytest.mark.process
def test_an_interrupted_process_leaves_nothing(tmp_path):
    script = (
        "import time\nfrom skillgraft.checkpoint import atomic_directory\n"
        f"with atomic_directory({str(tmp_path / 'out')!r}) as partial:\n"
        "    print('ready', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert process.stdout.readline() == b"ready\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait()
    process.stdout.close()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: IoError(Os { code: 28, message: 'No space left on device' })"),
        RuntimeError("write failed: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_a_storage_error(tmp_path, error):
    with pytest.raises(StorageError, match=r"out: the disk is full .*; 17 bytes are needed; free") as caught:
        write_and_raise(tmp_path / "out", error, needed_bytes=17)
    assert caught.value.__cause__ is error
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.EFBIG, "File too large"), RuntimeError("write failed: File too large (os error 27)")]
)
def test_a_limit_of_file_sizes_is_a_storage_error(tmp_path, error):
    with pytest.raises(StorageError, match=r"out: a file would be larger than is allowed here .*ulimit -f"):
        write_and_raise(tmp_path / "out", error)
    assert names(tmp_path) == []


def test_a_forbidden_path_is_a_storage_error(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied", "/some/file")
    with pytest.raises(StorageError, match=r"/some/file: Permission denied while writing .*out"):
        write_and_raise(tmp_path / "out", error)
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", [atomic_directory, lambda out: resumable_directory(out, "0" * 64)])
def test_a_folder_that_takes_no_files_is_a_storage_error(make):
    with pytest.raises(StorageError, match="choose another output"), make("/proc/x"):
        pass


def test_a_parent_that_is_a_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "out", tmp_path / "file" / "sub" / "out"):
        with pytest.raises(StorageError, match=r"file.* is a file, expected a directory"), atomic_directory(out):
            pass


def test_other_system_errors_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out"):
        open(tmp_path / "nothing").close()


def test_free_space_is_checked_before_the_block(tmp_path):
    with pytest.raises(StorageError, match=rf"out: {10**18} bytes are needed, \d+ are free"):
        write_and_raise(tmp_path / "out", AssertionError("the block must not start"), needed_bytes=10**18)
    assert names(tmp_path) == []
    check_free_space(tmp_path / "not" / "there", 1)
