"""Object code that is kept gives what Numba gives, is made anew when it must be, and never harms."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from skillgraft.support import compiled
from skillgraft.support.compiled import Compiled

SOURCE = """
from numba import njit

@njit(nogil=True, error_model="numpy")
def weigh(values, rows, factor, number, turn, out):
    total = 0.0
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            total += rows[i, k] * FACTOR
    for k in range(len(values)):
        out[k] = values[k] * factor + number
        if turn:
            out[k] = -out[k]
    return total, len(values)

@njit
def greedy(values, out):
    room = values.copy()
    out[0] = room[0]
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Make a module of kernels and a folder for object code; return the function that writes the module."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setattr(compiled, "folders", lambda: [folder])
    monkeypatch.syspath_prepend(tmp_path)

    times = count(1_000_000_000)

    def write(factor):
        sys.modules.pop("weighing", None)
        file = tmp_path / "weighing.py"
        file.write_text(SOURCE.replace("FACTOR", factor))
        os.utime(file, (next(times), next(times)))  # byte code of the same size and second would pass for this one's
        return folder

    yield write
    sys.modules.pop("weighing", None)


def kernel(name="weigh", arguments="f8[:] f4[:,:] f8 i8 b1 =f8[:]", result="f8 i8"):
    return Compiled("weighing", name, arguments, result)


def call(function, turn=False):
    out = np.zeros(3)
    found = function(np.array([1.0, 2.0, 3.0]), np.ones((2, 5), dtype=np.float32), 2.0, np.int64(7), turn, out)
    return found, out.tolist()


def test_arguments_and_results(kept):
    folder = kept("3.0")
    assert call(kernel()) == ((30.0, 3), [9.0, 11.0, 13.0])
    assert call(kernel(), turn=True)[1] == [-9.0, -11.0, -13.0]
    assert len(list(folder.iterdir())) == 1


def test_what_is_only_read_is_converted_and_what_is_written_must_fit(kept):
    kept("1.0")
    function, out = kernel(), np.zeros(3)
    found = function([1, 2, 3] @ np.eye(3, dtype=np.int64), np.ones((4, 3), dtype=np.int8).T, 1, 0, False, out)
    assert (found, out.tolist()) == ((12.0, 3), [1.0, 2.0, 3.0])
    with pytest.raises(TypeError, match="expected a C-contiguous array of float64 to write into, got float32"):
        function(np.ones(3), np.ones((2, 5)), 1, 0, False, np.zeros(3, dtype=np.float32))
    with pytest.raises(TypeError, match="to write into"):
        function(np.ones(3), np.ones((2, 5)), 1, 0, False, np.zeros(6)[::2])
    out.flags.writeable = False
    with pytest.raises(TypeError, match="read only"):
        function(np.ones(3), np.ones((2, 5)), 1, 0, False, out)
    out.flags.writeable = True
    with pytest.raises(TypeError, match="expected 2 dimensions, got 1"):
        function(np.ones(3), np.ones(5), 1, 0, False, out)
    with pytest.raises(ValueError, match="zip"):
        function(np.ones(3))


@pytest.mark.process
def test_a_second_process_needs_no_numba(kept, tmp_path):
    folder = kept("3.0")
    first = call(kernel())
    code = (
        "import sys; from pathlib import Path; import numpy as np; from skillgraft.support import compiled\n"
        f"sys.path.insert(0, {str(tmp_path)!r}); compiled.folders = lambda: [Path({str(folder)!r})]\n"
        "from tests.support.test_compiled import call, kernel\n"
        "print(call(kernel()), 'numba' in sys.modules, 'weighing' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == f"{first} False False"


def test_changed_sources_are_compiled_anew(kept):
    folder = kept("3.0")
    assert call(kernel())[0] == (30.0, 3)
    before = {file.name for file in folder.iterdir()}
    kept("5.0")
    assert call(kernel())[0] == (50.0, 3)
    after = {file.name for file in folder.iterdir()}
    assert len(after) == 1  # what no source has any more is removed
    assert after != before


@pytest.mark.parametrize("left", [slice(0, -100), slice(1, None), slice(0, 0)])
def test_damaged_object_code_is_made_anew(kept, left):
    folder = kept("3.0")
    call(kernel())
    [file] = folder.iterdir()
    damaged = file.read_bytes()[left]
    file.write_bytes(damaged)
    assert call(kernel())[0] == (30.0, 3)
    assert file.read_bytes() != damaged  # its length may differ: Numba's names do, from run to run


@pytest.mark.process
def test_numba_works_beside_it_when_it_comes_later(kept, tmp_path):
    folder = kept("3.0")
    call(kernel())
    code = (
        "import sys; from pathlib import Path; from skillgraft.support import compiled\n"
        f"sys.path.insert(0, {str(tmp_path)!r}); compiled.folders = lambda: [Path({str(folder)!r})]\n"
        "from tests.support.test_compiled import call, kernel\n"
        "call(kernel()); assert 'numba' not in sys.modules\n"
        "import numba, numpy as np\n"
        "@numba.njit\n"
        "def grown(values):\n"
        "    if len(values) > 3: raise ValueError('too long')\n"
        "    return [str(len(values)), 'x'], np.concatenate((values, values))\n"
        "print(grown(np.ones(2)))\n"
        "try: grown(np.ones(5))\n"
        "except ValueError as error: print(error)\n"
        "print(call(kernel()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "too long" in done.stdout
    assert "((30.0, 3), [9.0, 11.0, 13.0])" in done.stdout


def test_nowhere_to_keep_it(kept, monkeypatch):
    kept("3.0")
    monkeypatch.setattr(compiled, "folders", lambda: [Path("/dev/null/none")])
    assert call(kernel())[0] == (30.0, 3)
    assert compiled.folder() is None


def test_threads_load_it_once(kept, monkeypatch):
    kept("3.0")
    linked = []
    link = compiled._link
    monkeypatch.setattr(compiled, "_link", lambda code: linked.append(code) or link(code))
    function = kernel()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: call(function), range(16)))
    assert found == [((30.0, 3), [9.0, 11.0, 13.0])] * 16
    assert len(linked) == 1


def test_a_function_that_allocates_is_refused(kept):
    kept("3.0")
    with pytest.raises(RuntimeError, match="greedy allocates memory"):
        kernel("greedy", "f8[:] =f8[:]", "")(np.ones(3), np.ones(3))


def test_a_numba_that_gives_no_object_code_still_computes(kept, monkeypatch):
    folder = kept("3.0")

    def absent(*_):  # as with a later version that names things otherwise
        raise AttributeError("'CFunc' object has no attribute '_library'")

    monkeypatch.setattr(Compiled, "_compile", absent)
    assert call(kernel()) == ((30.0, 3), [9.0, 11.0, 13.0])
    assert not list(folder.iterdir())
