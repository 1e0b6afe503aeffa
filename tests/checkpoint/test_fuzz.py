"""Damaged checkpoints give a clear error or a sound layout: no crash, no read elsewhere, no runaway time or memory."""

import json
import math
import os
import resource
import time
from pathlib import Path

import pytest

from skillgraft.checkpoint import read_layout, tokenizer_identity
from skillgraft.checkpoint.header import DTYPE_BYTES, read_header
from skillgraft.checkpoint.layout import weight_files
from skillgraft.checkpoint.verify import verify_checkpoint
from skillgraft.errors import SkillgraftError
from tests.checkpoint.fuzzing import damage, generator
from tests.tiny import split_into_shards, tiny_checkpoint

DEFAULT_CASES = 400
SLOW_CASES = 20_000
SLOWEST_SECONDS = 2.0
MEMORY_GROWTH_KIB = 200 * 1024


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("SKILLGRAFT_CACHE", str(tmp_path / "cache"))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    return split_into_shards(tiny_checkpoint(tmp_path / "whole", **sizes), tmp_path / "small", shards=2)


def test_damaged_checkpoints(small, monkeypatch):
    fuzz(small, range(int(os.environ.get("SKILLGRAFT_FUZZ_CASES", DEFAULT_CASES))), monkeypatch)


@pytest.mark.slow
def test_many_damaged_checkpoints(small, monkeypatch):
    fuzz(small, range(DEFAULT_CASES, SLOW_CASES), monkeypatch)


def fuzz(directory, seeds, monkeypatch):
    """Read the damaged checkpoint of every seed; fail with the seed in the message."""
    names = ("config.json", "tokenizer.json", "model.safetensors.index.json")
    valid = {path.name: path.read_bytes() for path in directory.iterdir() if path.name in names or "of" in path.name}
    opened = record_opens(monkeypatch)
    before, slowest, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0.0, 0
    for seed in seeds:
        damaged = damage(valid, generator(seed))
        changed = [name for name in valid if damaged[name] is not valid[name]]
        for name in changed:
            replace(directory / name, damaged[name])
        opened.clear()
        began = time.process_time()
        try:
            refused += sum(probe(directory))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}") from error
        slowest = max(slowest, time.process_time() - began)
        assert {path.parent for path in opened if isinstance(path, Path)} <= {directory}, f"seed {seed} read {opened}"
        for name in changed:
            replace(directory / name, valid[name])
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{len(seeds)} cases, {refused} refusals, slowest {slowest:.3f} s, peak memory +{growth} KiB")
    assert refused > len(seeds) // 2
    assert slowest < SLOWEST_SECONDS
    assert growth < MEMORY_GROWTH_KIB


def replace(path, content):
    path.unlink()  # some file systems flush a file that is truncated and written again, which takes milliseconds
    path.write_bytes(content)


def probe(directory):
    """Return which of the readers refused the checkpoint, after checking what they returned or said."""
    shards = sorted(directory.glob("*.safetensors"))
    readers = [lambda shard=shard: read_header(shard) for shard in shards]
    readers += [lambda: weight_files(directory), lambda: read_layout(directory), lambda: tokenizer_identity(directory)]
    refused = [refuses(reader) for reader in readers]
    found = verify_checkpoint(directory)
    json.dumps(found.as_dict(), allow_nan=False).encode()
    assert all(finding.message.isprintable() for finding in found.findings)
    assert not (found.ok and any(refused)), "refused although nothing wrong was found"
    return refused


def refuses(reader):
    try:
        result = reader()
    except SkillgraftError as error:
        message = str(error)
        assert len(message) < 12_000
        assert message.isprintable()
        message.encode()
        return True
    for info in getattr(result, "tensors", ()) and list(tensors_of(result)):
        assert info.name
        assert info.name.isprintable()
        assert 0 < info.begin <= info.end <= info.file.stat().st_size
        assert info.end - info.begin == math.prod(info.shape) * DTYPE_BYTES[info.dtype]
        assert all(type(size) is int for size in info.shape)
    return False


def tensors_of(result):
    return result.tensors.values() if isinstance(result.tensors, dict) else result.tensors


def record_opens(monkeypatch):
    opened, system_open = [], os.open

    def recording(path, *arguments, **settings):
        opened.append(path)
        return system_open(path, *arguments, **settings)

    monkeypatch.setattr(os, "open", recording)
    return opened
