"""What may lie where a checkpoint's file is expected: links, FIFOs, folders, sparse and huge files, other encodings."""

import os
import resource
import shutil
import threading
import tracemalloc

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillgraft.checkpoint import fingerprint_checkpoint, fingerprint_file, read_layout, tokenizer_identity
from skillgraft.checkpoint import layout as layout_module
from skillgraft.checkpoint.header import read_header
from skillgraft.checkpoint.layout import INDEX_FILE, MAX_CONFIG_BYTES, WEIGHTS_FILE, weight_files
from skillgraft.checkpoint.safe_read import MAX_JSON_BYTES, read_json_object
from skillgraft.errors import CheckpointError, MissingPathError, SkillgraftError
from tests.checkpoint.test_header import entry, write_raw
from tests.tiny import edit_json, split_into_shards

SHARD = "model-00002-of-00003.safetensors"


@pytest.fixture
def sharded(tiny, tmp_path):
    return split_into_shards(tiny, tmp_path / "sharded")


PLACED = {
    "FIFO": (os.mkfifo, "is a FIFO, expected a regular file"),
    "folder": (os.mkdir, "is a directory, expected a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device, expected a regular file"),
    "loop": (lambda path: path.symlink_to(path.name), "link that leads back to itself"),
    "dangling": (lambda path: path.symlink_to("../blobs/gone"), r"symbolic link to \.\./blobs/gone, which does not"),
}


@pytest.mark.parametrize(("place", "message"), PLACED.values(), ids=PLACED)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS_FILE])
def test_other_things_in_place_of_a_file(copied, name, place, message):
    (copied / name).unlink()
    place(copied / name)
    read = tokenizer_identity if name == "tokenizer.json" else read_layout
    with pytest.raises(SkillgraftError, match=message) as caught:
        in_time(read, copied)
    assert str(copied / name) in str(caught.value)


@pytest.mark.parametrize("name", [SHARD, INDEX_FILE])
@pytest.mark.parametrize(("place", "message"), PLACED.values(), ids=PLACED)
def test_other_things_in_place_of_a_shard_or_the_index(sharded, name, place, message):
    (sharded / name).unlink()
    place(sharded / name)
    message = f"{SHARD}, which is missing" if (name, place) == (SHARD, PLACED["dangling"][0]) else message
    for read in (read_layout, weight_files, fingerprint_checkpoint):
        with pytest.raises(SkillgraftError, match=message):
            in_time(read, sharded)


def in_time(read, path):
    """Call `read` in a thread, so that one that blocks fails the test instead of hanging it."""
    caught = []

    def call():
        try:
            read(path)
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "blocked"
    if caught:
        raise caught[0]


def test_a_hub_snapshot_of_links_out_of_the_directory(sharded, tmp_path):
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(sharded.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    layout = read_layout(snapshot)
    assert layout.tensors.keys() == read_layout(sharded).tensors.keys()
    assert {file.parent for file in layout.files} == {snapshot}
    assert fingerprint_checkpoint(snapshot) == fingerprint_checkpoint(sharded)
    assert tokenizer_identity(snapshot) == tokenizer_identity(sharded)


def test_a_file_that_may_not_be_read(copied, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    for read in (read_layout, tokenizer_identity, fingerprint_checkpoint):
        with pytest.raises(CheckpointError, match=r"may not be read \(Permission denied\).*check owner and mode"):
            read(copied)


def test_a_directory_that_may_not_be_read(copied, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CheckpointError, match=r"copied: may not be read.*check owner and mode"):
        read_layout(copied)


def test_a_file_that_vanishes_meanwhile(copied, monkeypatch):
    def read_after_removal(path):
        path.unlink()
        return read_header(path)

    monkeypatch.setattr(layout_module, "read_header", read_after_removal)
    with pytest.raises(MissingPathError, match=r"model\.safetensors: no such file"):
        read_layout(copied)


def test_a_disk_that_fails(copied, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("skillgraft.checkpoint.fingerprint._hash", fail)
    with pytest.raises(CheckpointError, match=r"could not be read \(Input/output error\)"):
        fingerprint_file(copied / WEIGHTS_FILE)


def test_a_sparse_header_costs_one_piece(tmp_path):
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write((100_000_000).to_bytes(8, "little") + b"{")
        file.truncate(10**12)
    assert peak_bytes(read_header, path, "header cannot be read .it holds a NUL byte") < 4 << 20


def test_a_sparse_config_costs_nothing(copied):
    for size, message in ((10**12, f"expected at most {MAX_CONFIG_BYTES}"), (MAX_CONFIG_BYTES, "NUL byte")):
        with (copied / "config.json").open("wb") as file:
            file.truncate(size)
        assert peak_bytes(read_layout, copied, message) < 4 << 20
    os.truncate(copied / "config.json", MAX_JSON_BYTES + 1)
    with pytest.raises(CheckpointError, match=f"has {MAX_JSON_BYTES + 1} bytes, expected at most {MAX_JSON_BYTES}"):
        read_json_object(copied / "config.json")


@pytest.mark.parametrize("filler", [b"[],", b'{"":0},', b"12345,", b"[" * 40 + b"]" * 40 + b","])
def test_a_header_that_would_blow_up_costs_little_more_than_its_text(tmp_path, filler):
    text = b'{"a":[' + filler * (2_000_000 // len(filler)) + b"0]}"
    path = write_raw(tmp_path / "x.safetensors", text, b"")
    assert peak_bytes(read_header, path, "header cannot be read") < 4 * len(text)


def test_many_tensors_without_elements(tmp_path):
    count = 5_000
    names = ",".join(f'"{number}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for number in range(count))
    path = write_raw(tmp_path / "x.safetensors", b"{" + names.encode() + b"}", b"")
    assert peak_bytes(read_header, path, None) < 12 * path.stat().st_size
    assert len(read_header(path).tensors) == count


def peak_bytes(read, path, message):
    """Return the most memory that Python held while `read` refused `path` (or read it, for a message of None)."""
    tracemalloc.start()
    try:
        if message is None:
            read(path)
        else:
            with pytest.raises(CheckpointError, match=message):
                read(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_hashing_takes_a_few_mebibytes(tmp_path):
    size = 300 << 20
    with (tmp_path / "big").open("wb") as file:
        file.truncate(size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fingerprint_file(tmp_path / "big")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 64 << 20


HUGE = 10**400
REFUSED = {
    "torch cannot hold it": ({"a": entry(0, 0, shape=[2**62, 2**62, 0])}, r"'a': shape \[.*\] takes more than 2\*\*63"),
    "huge": ({"a": entry(0, 0, shape=[HUGE])}, r"'a': shape \[1000.*000\].* is not a list of sizes"),
    "huge offset": ({"a": entry(0, HUGE, shape=[1])}, r"'a': .*is not a list of sizes"),
    "many dimensions": ({"a": entry(0, 4, shape=[2] * 1000)}, r"'a': shape \[2, 2, .*\.\.\.\] takes more than 2\*\*63"),
    "more digits than Python reads": (b'{"a":{"shape":[' + b"9" * 5000 + b"]}}", "header cannot be read"),
    "NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', r"'a': shape \[nan\]"),
    "no name": ({"": entry(0, 4)}, r"names a tensor '', expected 1 to 4096 printable"),
    "newline": ({"a\nb": entry(0, 4)}, r"names a tensor 'a\\nb', expected"),
    "NUL": ({"a\0": entry(0, 4)}, r"names a tensor 'a\\x00', expected"),
    "escape": ({"\x1b[2J": entry(0, 4)}, r"names a tensor '\\x1b"),
    "surrogate": ({"\ud800": entry(0, 4)}, r"names a tensor '\\ud800', expected"),
    "long name": ({"x" * 5000: entry(0, 4)}, r"names a tensor 'xxx.*\.\.\..*xxx', expected"),
    "byte order mark": (b"\xef\xbb\xbf{}", r"expected '\{' at character 0"),
    "space before": (b" {}", r"expected '\{' at character 0"),
    "text after": (b"{} {}", r"text after the object, at character 3"),
    "deep": (b'{"a":' + b"[" * 3000, "header cannot be read"),
    "deep metadata": (b'{"__metadata__":' + b'{"a":' * 3000, "__metadata__"),
    "metadata twice": (b'{"__metadata__":{"a":"1","a":"2"}}', "names 'a' twice"),
    "metadata surrogate": (b'{"__metadata__":{"a":"\\ud800"}}', "surrogates not allowed"),
    "metadata list": ({"__metadata__": []}, "__metadata__"),
    "dtype twice": (b'{"a":{"dtype":"F32","dtype":"F32"}}', "names 'dtype' twice"),
    "long dtype": ({"a": entry(0, 4, dtype="F" * 3000)}, r"dtype 'FFF.*\.\.\..*' is unknown"),
    "fp8 e5m2": ({"a": entry(0, 4, dtype="F8_E5M2", shape=[4])}, r"tensor 'a' is stored as F8_E5M2"),
}


@pytest.mark.parametrize(("header", "message"), REFUSED.values(), ids=REFUSED)
def test_hostile_headers_are_refused(tmp_path, header, message):
    path = write_raw(tmp_path / "shard.safetensors", header, bytes(4))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 5000


def test_metadata_of_null_and_padding_are_fine(tmp_path):
    header = read_header(write_raw(tmp_path / "x.safetensors", b'{"__metadata__":null}   ', b""))
    assert (header.metadata, header.tensors) == ({}, ())


@pytest.mark.parametrize("shard", ["config.json", "a\nb.safetensors", "..\\x.safetensors", "n" * 300 + ".safetensors"])
def test_index_names_that_are_no_shard(sharded, shard):
    edit_json(sharded / INDEX_FILE, weight_map={"model.norm.weight": shard})
    with pytest.raises(CheckpointError, match=r"is mapped to|could not be read \(File name too long\)"):
        read_layout(sharded)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '{"a":' + "9" * 5000 + "}", "\ufeff{}", "", "NaN", "null"]
)
def test_hostile_json_files(copied, text):
    (copied / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: (not readable as JSON|got a JSON)"):
        read_layout(copied)


TOKENIZERS = {
    "infinite id": '{"model": {"vocab": {"a": 1e999}}}',
    "NaN id": '{"model": {"vocab": {"a": NaN}}}',
    "huge id": '{"model": {"vocab": {"a": 1' + "0" * 400 + "}}}",
    "negative id": '{"model": {"vocab": {"a": -1}}}',
    "true as id": '{"model": {"vocab": {"a": true}}}',
    "text as vocabulary": '{"model": {"vocab": "abc"}}',
    "texts as vocabulary": '{"model": {"vocab": ["ab"]}}',
    "empty entry": '{"model": {"vocab": [[]]}}',
    "nested token": '{"model": {"vocab": [[' + "[" * 500 + "]" * 500 + ", 0]]}}",
    "added text": '{"model": {"vocab": {}}, "added_tokens": "abc"}',
    "added number": '{"model": {"vocab": {}}, "added_tokens": 3}',
    "merge of three": '{"model": {"vocab": {}, "merges": ["a b c"]}}',
    "merge of numbers": '{"model": {"vocab": {}, "merges": [[1, 2]]}}',
    "model list": '{"model": [1]}',
}


@pytest.mark.parametrize("text", TOKENIZERS.values(), ids=TOKENIZERS)
def test_hostile_tokenizers(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no vocabulary could be read") as caught:
        tokenizer_identity(tmp_path)
    assert len(str(caught.value)) < 1000


QUANTISED = {
    "bitsandbytes 4 bit": ("mlp.up_proj.weight", torch.uint8, "mlp.up_proj.weight.absmax"),
    "bitsandbytes 4 bit map": ("mlp.up_proj.weight", torch.uint8, "mlp.up_proj.weight.quant_map"),
    "bitsandbytes 8 bit": ("mlp.up_proj.weight", torch.int8, "mlp.up_proj.SCB"),
    "GPTQ": ("mlp.up_proj.qweight", torch.int32, "mlp.up_proj.scales"),
    "compressed-tensors": ("mlp.up_proj.weight_packed", torch.int32, "mlp.up_proj.weight_scale"),
    "MLX": ("mlp.up_proj.weight", torch.uint32, "mlp.up_proj.scales"),
    "MXFP4": ("mlp.experts.up_proj_blocks", torch.uint8, "mlp.experts.up_proj_scales"),
}


@pytest.mark.parametrize(("name", "dtype", "scale"), QUANTISED.values(), ids=QUANTISED)
def test_quantised_tensors_without_a_word_in_the_config(copied, name, dtype, scale):
    own = {name: torch.zeros(4, 4, dtype=dtype), scale: torch.ones(4)}
    save_file({**load_file(copied / WEIGHTS_FILE), **own}, copied / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' is .*{scale}.*quantised.*bfloat16"):
        read_layout(copied)


def test_integer_tensors_that_are_no_weights_are_fine(copied):
    own = {"h.0.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool), "norm.num_batches_tracked": torch.tensor(3)}
    save_file({**load_file(copied / WEIGHTS_FILE), **own}, copied / WEIGHTS_FILE)
    assert own.keys() < read_layout(copied).tensors.keys()


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("quantization_config", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        ("compression_config", {"compression_config": {"format": "int-quantized"}}),
        ("quantization", {"quantization": {"group_size": 64, "bits": 4}}),
        (r"text_config\.quantization_config", {"text_config": {"quantization_config": {"quant_method": "fp8"}}}),
    ],
)
def test_configs_that_name_quantised_weights(copied, key, changes):
    edit_json(copied / "config.json", **changes)
    with pytest.raises(CheckpointError, match=rf"config\.json has a {key}: the weights are quantised"):
        read_layout(copied)
