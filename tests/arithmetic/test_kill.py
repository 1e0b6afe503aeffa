"""SIGKILL at any moment: nothing partial is taken for a model, and the rerun completes with the same bytes."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from skillgraft.arithmetic import merge
from skillgraft.checkpoint import read_layout
from tests.tiny import split_into_shards, tiny_checkpoint, tiny_finetune

pytestmark = pytest.mark.process

KILLS = int(os.environ.get("SKILLGRAFT_KILLS", "12"))

FORKED = """
import os, sys
sys.path.insert(0, {tests!r})
import skillgraft.checkpoint.fingerprint as fingerprint
from skillgraft.arithmetic import merge

whole = fingerprint.blake3
fingerprint.blake3 = lambda *data, **_: whole(*data)  # its threads would not be there after a fork
fingerprint.blake3.AUTO = whole.AUTO
merge({recipe!r}, {warm!r}, threads=1)  # loads the kernels; its thread has ended when the forks come
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        merge({recipe!r}, {out!r}, threads=1)
        os._exit(0)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("done", flush=True)
"""


def content(path):
    return {file.name: file.read_bytes() for file in sorted(path.iterdir()) if file.name != "skillgraft.json"}


@pytest.fixture
def server(tmp_path):
    """A process with the engine loaded that forks a merge for each line it is sent."""
    base = split_into_shards(tiny_checkpoint(tmp_path / "one-file", hidden_size=64), tmp_path / "base", shards=6)
    tiny_finetune(tmp_path / "one-file", tmp_path / "other")
    recipe = {"method": "task_arithmetic", "base": str(base), "operands": [{"model": str(tmp_path / "other")}]}
    code = FORKED.format(recipe=recipe, out=str(tmp_path / "out"), tests=os.getcwd(), warm=str(tmp_path / "warm"))
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    merge(recipe, tmp_path / "expected")
    yield process
    process.kill()


def start(server):
    server.stdin.write("go\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def test_kills_at_random_moments(server, tmp_path):
    out, expected = tmp_path / "out", content(tmp_path / "expected")
    began = time.perf_counter()
    start(server)
    assert server.stdout.readline() == "done\n"
    whole = time.perf_counter() - began
    assert content(out) == expected
    shutil.rmtree(out)
    rng, killed, resumed = random.Random(0), 0, 0
    for _ in range(KILLS):
        pid = start(server)
        time.sleep(rng.uniform(0, whole))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        assert server.stdout.readline() == "done\n"
        if out.exists():  # complete, or not there at all
            assert content(out) == expected
            shutil.rmtree(out)
            continue
        killed += 1
        partial = [path for path in tmp_path.iterdir() if path.name.startswith(".out.partial-of-")]
        resumed += any(list(path.glob("*.finished.json")) for path in partial)
        if rng.random() < 0.5:
            start(server)
            assert server.stdout.readline() == "done\n"
            assert content(out) == expected
            shutil.rmtree(out)
    start(server)
    assert server.stdout.readline() == "done\n"
    assert content(out) == expected
    assert killed > 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    print(f"{KILLS} kills: {killed} before the end, {resumed} with finished shards to go on with")


KILL_AFTER = """
import os, signal
import skillgraft.arithmetic.stream as stream
from skillgraft.arithmetic import merge

whole, written = stream._write_shard, []

def write(plan, facts, name, *rest):
    if len(written) == {shards}:
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(name)
    return whole(plan, facts, name, *rest)

stream._write_shard = write
merge({recipe!r}, {out!r})
"""


def killed_after(shards, recipe, out):
    """Run a merge in a process of its own that is killed when so many shards are written."""
    code = KILL_AFTER.format(shards=shards, recipe=recipe, out=str(out))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


def test_finished_shards_are_not_written_again(tmp_path, monkeypatch):
    import skillgraft.arithmetic.stream as stream

    base = split_into_shards(tiny_checkpoint(tmp_path / "one-file"), tmp_path / "base", shards=4)
    tiny_finetune(tmp_path / "one-file", tmp_path / "other")
    recipe = {"method": "linear", "base": str(base), "operands": [{"model": str(tmp_path / "other")}]}
    out = tmp_path / "out"
    killed_after(2, recipe, out)
    assert not out.exists()
    whole, written = stream._write_shard, []
    monkeypatch.setattr(stream, "_write_shard", lambda p, f, name, *r: written.append(name) or whole(p, f, name, *r))
    merge(recipe, out)
    assert written == [f"model-{number:05d}-of-00004.safetensors" for number in (3, 4)]
    made, other = read_layout(out), read_layout(tmp_path / "other")
    assert all(torch.equal(made.read(name), other.read(name)) for name in other.tensors)


def test_work_for_other_settings_is_not_gone_on_with(tmp_path):
    base = split_into_shards(tiny_checkpoint(tmp_path / "one-file"), tmp_path / "base", shards=2)
    other = tiny_finetune(tmp_path / "one-file", tmp_path / "other")
    recipe = {"method": "linear", "base": str(base), "operands": [{"model": str(other)}]}
    killed_after(1, recipe, tmp_path / "out")
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".out.partial-of-")]
    merge({**recipe, "method": "task_arithmetic"}, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
