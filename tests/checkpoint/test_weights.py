import errno
import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from skillgraft.checkpoint import atomic_directory, read_layout
from skillgraft.checkpoint.header import TensorSpec, read_header
from skillgraft.checkpoint.tensor_io import tensor_bytes
from skillgraft.checkpoint.weights import SafetensorsAppender, ShardFile, planned_dtypes, write_index
from skillgraft.errors import CheckpointError, StorageError
from tests.tiny import split_into_shards, weights


def copy(layout, folder, order=None, pieces=1, metadata=None):
    """Write the tensors of a one-file checkpoint through `ShardFile`, each in `pieces`, in any order."""
    specs = [TensorSpec(name, info.dtype, info.shape) for name, info in layout.tensors.items()]
    shard = ShardFile(folder / "model.safetensors", specs, metadata or {})
    try:
        for name in order or layout.tensors:
            flat, start = layout.read(name).reshape(-1), 0
            for piece in flat.chunk(pieces):
                shard.write(name, start * piece.element_size(), tensor_bytes(piece))
                start += len(piece)
        shard.check_complete()
    finally:
        shard.close()


def test_a_copy_is_read_by_the_library_with_the_same_bits(tiny, tmp_path):
    layout = read_layout(tiny)
    copy(layout, tmp_path, metadata={"made": "here"})
    made = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(made[name], layout.read(name)) for name in layout.tensors)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "made": "here"}


def test_order_and_pieces_do_not_change_a_byte(tiny, tmp_path):
    layout = read_layout(tiny)
    for folder, order, pieces in (("a", None, 1), ("b", sorted(layout.tensors, reverse=True), 7)):
        (tmp_path / folder).mkdir()
        copy(layout, tmp_path / folder, order, pieces)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_the_index_is_the_targets_with_its_own_size(tiny, tmp_path):
    layout = read_layout(split_into_shards(tiny, tmp_path / "sharded"))
    write_index(tmp_path, layout, 99)
    made = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert made["weight_map"] == layout.index["weight_map"]
    assert made["metadata"]["total_size"] == 99


def test_planned_dtypes(tiny):
    layout = read_layout(tiny)
    assert set(planned_dtypes(layout, None).values()) == {"F32"}
    assert set(planned_dtypes(layout, "BF16").values()) == {"BF16"}


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
    copy(read_layout(tmp_path / "in"), tmp_path / "out")
    made = load_file(tmp_path / "out/model.safetensors")
    for name, tensor in tensors.items():
        assert made[name].shape == tensor.shape
        assert torch.equal(made[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_what_was_not_written_or_twice_is_noticed(tiny, tmp_path):
    layout = read_layout(tiny)
    names = list(layout.tensors)
    for order in (names[1:], [*names, names[0]]):
        with pytest.raises(CheckpointError, match="planned bytes of tensors were never written or written twice"):
            copy(layout, tmp_path, order)


def test_non_contiguous_tensors_are_written_in_row_major_order(tmp_path):
    tensor = torch.arange(6.0).reshape(2, 3).T
    with SafetensorsAppender(tmp_path / "x.safetensors", [TensorSpec("x", "F32", (3, 2))], {}) as file:
        file.add("x", tensor)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], tensor)


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
    assert path.stat().st_size == read_header(path).tensors[-1].end
    assert torch.equal(loaded["c"], torch.full((4,), 3.0))
    assert torch.equal(loaded["a"], torch.ones(4))


def test_short_writes_are_continued(tiny, tmp_path, monkeypatch):
    layout = read_layout(tiny)
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, position: whole(handle, data[:1000], position))
    copy(layout, tmp_path)
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
        copy(layout, partial)
    assert list(tmp_path.iterdir()) == []
