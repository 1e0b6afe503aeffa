import json
import os
import shutil
from pathlib import Path

import pytest
from blake3 import blake3

from skillgraft.checkpoint import cache_home, fingerprint, fingerprint_checkpoint, fingerprint_file
from skillgraft.errors import CheckpointError, MissingPathError
from tests.tiny import split_into_shards, tiny_finetune


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once, so that a test need not wait for the cache to be used."""
    monkeypatch.setattr(fingerprint, "SETTLED_SECONDS", -1.0)


@pytest.fixture
def hashed(monkeypatch):
    """The sizes of the files that were really hashed."""
    sizes = []
    hash_file = fingerprint._hash

    def counting(file):
        sizes.append(os.fstat(file.fileno()).st_size)
        return hash_file(file)

    monkeypatch.setattr(fingerprint, "_hash", counting)
    return sizes


def test_a_file_is_hashed_with_blake3(tmp_path):
    (tmp_path / "x").write_bytes(b"skill")
    (tmp_path / "empty").write_bytes(b"")
    assert fingerprint_file(tmp_path / "x") == "blake3:" + blake3(b"skill").hexdigest()
    assert fingerprint_file(tmp_path / "empty") == "blake3:" + blake3(b"").hexdigest()


def test_a_checkpoint_is_its_weight_files(tiny, copied):
    file = "model.safetensors"
    pair = json.dumps([file, "blake3:" + blake3((tiny / file).read_bytes()).hexdigest()])
    assert fingerprint_checkpoint(tiny) == "blake3:" + blake3(pair.encode()).hexdigest()
    (copied / "config.json").write_text("{}")
    (copied / "note.txt").write_text("x")
    assert fingerprint_checkpoint(copied) == fingerprint_checkpoint(tiny)


def test_other_weights_and_other_shards_differ(tiny, tmp_path):
    tuned = tiny_finetune(tiny, tmp_path / "tuned", names=["model.norm.weight"])
    sharded = split_into_shards(tiny, tmp_path / "sharded")
    assert len({fingerprint_checkpoint(path) for path in (tiny, tuned, sharded)}) == 3
    shutil.copytree(sharded, tmp_path / "again")
    assert fingerprint_checkpoint(sharded) == fingerprint_checkpoint(tmp_path / "again")


def test_a_file_is_hashed_once(tmp_path, settled, hashed):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    assert fingerprint_file(path) == fingerprint_file(path)
    assert hashed == [3]
    path.write_bytes(b"two")
    assert fingerprint_file(path) == "blake3:" + blake3(b"two").hexdigest()
    os.utime(path, (1, 1))
    fingerprint_file(path)
    assert hashed == [3] * 3
    path.rename(tmp_path / "y")
    os.link(tmp_path / "y", tmp_path / "z")
    assert fingerprint_file(tmp_path / "z") == "blake3:" + blake3(b"two").hexdigest()


def test_a_rewrite_with_the_same_size_and_time_is_noticed(tmp_path, settled):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    os.utime(path, ns=(10**18, 10**18))
    fingerprint_file(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(10**18, 10**18))
    assert fingerprint_file(path) == "blake3:" + blake3(b"two").hexdigest()


def test_a_file_that_just_changed_is_not_cached(tmp_path, hashed):
    (tmp_path / "x").write_bytes(b"one")
    fingerprint_file(tmp_path / "x")
    fingerprint_file(tmp_path / "x")
    assert hashed == [3, 3]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'"x"', b'{"version": 3}', b"\xff", b'{"version": [], "fingerprint": 1}']
)
def test_a_damaged_cache_is_ignored(tmp_path, settled, content):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    expected = fingerprint_file(path)
    (entry,) = (cache_home() / "fingerprints").iterdir()
    entry.write_bytes(content)
    assert fingerprint_file(path) == expected
    assert json.loads(entry.read_text())["fingerprint"] == expected


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, settled, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SKILLGRAFT_CACHE", str(tmp_path / "file" / "cache"))
    (tmp_path / "x").write_bytes(b"one")
    assert fingerprint_file(tmp_path / "x") == "blake3:" + blake3(b"one").hexdigest()


def test_cache_home(monkeypatch, tmp_path):
    monkeypatch.setenv("SKILLGRAFT_CACHE", str(tmp_path / "cache"))
    assert cache_home() == tmp_path / "cache"
    monkeypatch.delenv("SKILLGRAFT_CACHE")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_home() == Path("/home/someone/.cache/skillgraft")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MissingPathError, match="nothing: no such file"):
        fingerprint_file(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="expected a regular file"):
        fingerprint_file(tmp_path)
    with pytest.raises(MissingPathError, match="nothing: no such directory"):
        fingerprint_checkpoint(tmp_path / "nothing")


def test_what_the_hub_recorded_is_read_from_its_cache(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name, blob in (("large.safetensors", "ab" * 32), ("small.json", "cd" * 20)):
        (blobs / blob).write_text(name)
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    (snapshot / "plain").write_text("x")
    files = sorted(snapshot.iterdir())
    assert fingerprint.recorded_sha256(files) == {"large.safetensors": "ab" * 32}
    assert fingerprint.recorded_sha256([snapshot / "plain"]) is None
