import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from skillgraft.checkpoint.header import TensorSpec, encode_header, read_header
from skillgraft.checkpoint.tensor_io import read_elements, read_tensor
from skillgraft.errors import CheckpointError


def write_raw(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, dtype="F32", shape=None):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_wrote(tmp_path):
    tensors = {
        "matrix": torch.randn(3, 5).bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
        "mask": torch.tensor([True, False]),
        "ids": torch.arange(7),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt", "é": "ü"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"format": "pt", "é": "ü"}
    assert {info.name for info in header.tensors} == set(tensors)
    assert [info.begin for info in header.tensors] == sorted(info.begin for info in header.tensors)
    for info in header.tensors:
        read = read_tensor(info)
        assert read.dtype == tensors[info.name].dtype
        assert read.shape == tensors[info.name].shape
        assert torch.equal(read, tensors[info.name])


def test_encoded_header_is_read_by_the_library(tmp_path):
    specs = [TensorSpec("b", "F32", (2,)), TensorSpec("a", "BF16", (1, 3))]
    data = torch.tensor([1.5, -2.0]).numpy().tobytes() + torch.ones(1, 3).bfloat16().view(torch.uint8).numpy().tobytes()
    for reserve in (0, 4096):
        path = tmp_path / f"{reserve}.safetensors"
        header = encode_header(specs, {"format": "pt"}, reserve)
        assert len(header) == max(reserve, len(header))
        assert len(header) % 8 == 0
        path.write_bytes(header + data)
        loaded = load_file(path)
        assert torch.equal(loaded["b"], torch.tensor([1.5, -2.0]))
        assert torch.equal(loaded["a"], torch.ones(1, 3).bfloat16())
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}


def test_read_elements_reads_single_elements(tmp_path):
    save_file({"x": torch.arange(12.0).reshape(3, 4).bfloat16()}, tmp_path / "x.safetensors")
    (info,) = read_header(tmp_path / "x.safetensors").tensors
    assert read_elements(info, [0, 5, 11]) == [0.0, 5.0, 11.0]
    assert read_elements(info, []) == []


REFUSALS = {
    "overlap": ({"a": entry(0, 8), "b": entry(4, 12)}, 12, r"tensor 'b' begins at byte .* overlaps tensor 'a'"),
    "gap": ({"a": entry(0, 8), "b": entry(12, 16)}, 16, r"4 bytes between tensor 'a' and tensor 'b'"),
    "out of range": ({"a": entry(0, 8), "b": entry(8, 400)}, 16, r"out of range.*tensor 'b' ends at byte"),
    "truncated": ({"a": entry(0, 16)}, 12, r"the header says \d+ bytes, the file has \d+ \(tensor 'a'"),
    "too long": ({"a": entry(0, 8)}, 12, r"the header says \d+ bytes, the file has \d+; it is damaged"),
    "wrong size": ({"a": entry(0, 8, shape=[3])}, 8, r"'a': offsets \[0, 8\] span 8 bytes.*takes 12"),
    "reversed": ({"a": entry(8, 0, shape=[2])}, 8, r"'a': offsets \[8, 0\] span -8"),
    "negative": ({"a": entry(-4, 4, shape=[2])}, 8, r"'a': shape .* is not a list of sizes"),
    "float shape": ({"a": entry(0, 8, shape=[2.0])}, 8, r"'a': shape \[2.0\]"),
    "boolean shape": ({"a": entry(0, 4, shape=[True])}, 4, r"'a': shape \[True\]"),
    "unknown dtype": ({"a": entry(0, 8, dtype="Q7")}, 8, r"'a': dtype 'Q7' is unknown"),
    "fp8": ({"a": entry(0, 8, dtype="F8_E4M3", shape=[8])}, 8, r"tensor 'a' is stored as F8_E4M3.*bfloat16"),
    "fp4": ({"a": entry(0, 8, dtype="F4", shape=[16])}, 8, r"tensor 'a' is stored as F4"),
    "no dtype": ({"a": {"shape": [1]}}, 4, r"tensor 'a': got .*expected dtype"),
    "metadata": ({"__metadata__": {"x": 1}, "a": entry(0, 8)}, 8, r"__metadata__"),
    "list": ([1], 0, r"header cannot be read \(expected '\{' at character 0\)"),
    "not JSON": (b"{oops", 0, r"header cannot be read \(expected a name in quotes at character 1\)"),
    "not UTF-8": (b'{"\xff', 0, r"header cannot be read \('utf-8' codec"),
    "name twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        8,
        r"names 'a' twice",
    ),
}


@pytest.mark.parametrize(("header", "size", "message"), REFUSALS.values(), ids=REFUSALS)
def test_damaged_headers_are_refused(tmp_path, header, size, message):
    path = write_raw(tmp_path / "shard.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(path) in str(caught.value)


def test_a_file_too_short_for_its_header_is_refused(tmp_path):
    path = tmp_path / "shard.safetensors"
    for content in (b"", b"\x10\x00", (64).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated within its header"):
            read_header(path)


def test_a_header_above_the_limit_is_refused_unread(tmp_path):
    path = tmp_path / "shard.safetensors"
    path.write_bytes((100_000_001).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="claims 100000001 bytes"):
        read_header(path)


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(100)}, path)
    (info,) = read_header(path).tensors
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="tensor 'x' was read: it changed"):
        read_tensor(info)
    with pytest.raises(CheckpointError, match="tensor 'x' was read: it changed"):
        read_elements(info, [99])
