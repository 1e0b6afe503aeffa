import errno
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from skillgraft.checkpoint import atomic_directory, read_layout, write_checkpoint
from skillgraft.checkpoint.header import TensorSpec, read_header
from skillgraft.checkpoint.weights import SafetensorsAppender, planned_bytes, planned_dtypes
from skillgraft.errors import CheckpointError, StorageError
from tests.tiny import split_into_shards, weights


def stream(layout):
    return ((name, layout.read(name)) for name in layout.tensors)


def test_a_copy_is_read_by_the_library_with_the_same_bits(tiny, tmp_path):
    layout = read_layout(tiny)
    write_checkpoint(tmp_path, layout, stream(layout), metadata={"made": "here"})
    copy = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(copy[name], layout.read(name)) for name in layout.tensors)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "here"}


def test_order_of_tensors_does_not_change_a_byte(tiny, tmp_path):
    layout = read_layout(tiny)
    for folder, order in (("a", list(layout.tensors)), ("b", sorted(layout.tensors, reverse=True))):
        (tmp_path / folder).mkdir()
        write_checkpoint(tmp_path / folder, layout, ((name, layout.read(name)) for name in order))
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_shards_and_index_are_the_targets(tiny, tmp_path):
    layout = read_layout(split_into_shards(tiny, tmp_path / "sharded"))
    (tmp_path / "copy").mkdir()
    halves = ((name, tensor.bfloat16()) for name, tensor in stream(layout))
    write_checkpoint(tmp_path / "copy", layout, halves, dtypes=planned_dtypes(layout, "BF16"))
    (tmp_path / "copy/config.json").write_text("{}")
    copy = read_layout(tmp_path / "copy")
    assert [file.name for file in copy.files] == [file.name for file in layout.files]
    assert {name: info.file.name for name, info in copy.tensors.items()} == layout.index["weight_map"]
    assert copy.index["metadata"]["total_size"] == layout.index["metadata"]["total_size"] // 2
    assert all(torch.equal(copy.read(name), layout.read(name).bfloat16()) for name in layout.tensors)


def test_planned_bytes(tiny):
    layout = read_layout(tiny)
    elements = sum(tensor.numel() for tensor in weights(tiny).values())
    assert planned_bytes(layout, planned_dtypes(layout, None)) == 4 * elements
    assert planned_bytes(layout, planned_dtypes(layout, "BF16")) == 2 * elements


def test_odd_tensors_round_trip(tmp_path):
    from safetensors.torch import save_file

    tensors = {
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 2),
        "mask": torch.tensor([True, False, True]),
        "half": torch.randn(3, 3).half(),
        "ids": torch.arange(5),
        "nan": torch.tensor([float("nan"), -0.0]),
    }
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    save_file(tensors, tmp_path / "in/model.safetensors")
    (tmp_path / "in/config.json").write_text("{}")
    layout = read_layout(tmp_path / "in")
    write_checkpoint(tmp_path / "out", layout, stream(layout))
    copy = load_file(tmp_path / "out/model.safetensors")
    for name, tensor in tensors.items():
        assert copy[name].shape == tensor.shape
        assert torch.equal(copy[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_non_contiguous_tensors_are_written_in_row_major_order(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3).T
    with SafetensorsAppender(tmp_path / "x.safetensors", [TensorSpec("x", "F32", (3, 2))], {}) as file:
        file.add("x", tensor)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], tensor)


def test_unplanned_missing_twice_and_misshapen_tensors_are_errors(tiny, tmp_path):
    layout = read_layout(tiny)
    first = next(iter(layout.tensors))

    def attempt(tensors):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_checkpoint(folder, layout, tensors)

    with pytest.raises(CheckpointError, match="'ghost' was not planned"):
        attempt([("ghost", torch.zeros(1))])
    with pytest.raises(CheckpointError, match=f"{first!r} was not planned or was written twice"):
        attempt([(first, layout.read(first))] * 2)
    with pytest.raises(CheckpointError, match="19 planned tensors were never written"):
        attempt([(first, layout.read(first))])
    with pytest.raises(CheckpointError, match=r"got BF16 of shape \[320, 32\], planned F32 of \[320, 32\]"):
        attempt([(first, layout.read(first).bfloat16())])
    with pytest.raises(CheckpointError, match=r"got F32 of shape \[32, 320\]"):
        attempt([(first, layout.read(first).T)])


def test_the_appender_leaves_out_what_never_came(tmp_path):
    planned = [TensorSpec(name, "F32", (4,)) for name in ("a", "b", "c")]
    path = tmp_path / "x.safetensors"
    with SafetensorsAppender(path, planned, {"format": "pt"}) as file:
        file.add("c", torch.full((4,), 3.0))
        file.add("a", torch.ones(4))
        with pytest.raises(CheckpointError, match="'a' was not planned or was written twice"):
            file.add("a", torch.ones(4))
        with pytest.raises(CheckpointError, match="'b': got F64"):
            file.add("b", torch.ones(4).double())
    assert [info.name for info in read_header(path).tensors] == ["c", "a"]
    loaded = load_file(path)
    assert torch.equal(loaded["c"], torch.full((4,), 3.0))
    assert torch.equal(loaded["a"], torch.ones(4))


def test_short_writes_are_continued(tiny, tmp_path, monkeypatch):
    layout = read_layout(tiny)
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, position: whole(handle, data[:1000], position))
    write_checkpoint(tmp_path, layout, stream(layout))
    assert all(torch.equal(tensor, layout.read(name)) for name, tensor in weights(tmp_path).items())


def test_a_disk_that_fills_up_leaves_nothing(tiny, tmp_path, monkeypatch):
    layout = read_layout(tiny)
    whole, written = os.pwrite, 0

    def pwrite(handle, data, position):
        nonlocal written
        written += len(data)
        if written > 30_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(handle, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    message = r"out: the disk is full.*99 bytes are needed"
    with (
        pytest.raises(StorageError, match=message),
        atomic_directory(tmp_path / "out", needed_bytes=99) as partial,
    ):
        write_checkpoint(partial, layout, stream(layout))
    assert list(tmp_path.iterdir()) == []
