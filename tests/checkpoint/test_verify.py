import json
import shutil
import subprocess
import sys

import pytest
import torch
from blake3 import blake3
from safetensors.torch import load_file, save_file

from skillgraft.checkpoint import fingerprint_checkpoint, write_provenance
from skillgraft.checkpoint.header import read_header
from skillgraft.checkpoint.layout import INDEX_FILE, WEIGHTS_FILE
from skillgraft.checkpoint.tensor_io import count_not_finite, same_bytes
from skillgraft.checkpoint.verify import verify_checkpoint
from skillgraft.errors import CheckpointError, MissingPathError
from tests.tiny import VOCABULARY, edit_json, split_into_shards, tiny_checkpoint

SOME_FINGERPRINT = "blake3:" + "0" * 64


@pytest.fixture
def sharded(tiny, tmp_path):
    return split_into_shards(tiny, tmp_path / "sharded")


def findings(directory, **settings):
    """The findings as (severity, subject, message)."""
    return [tuple(finding) for finding in verify_checkpoint(directory, **settings).findings]


def only(directory, severity, subject, **settings):
    """The message of the one finding that is expected."""
    (found,) = findings(directory, **settings)
    assert found[:2] == (severity, subject), found
    return found[2]


def rewrite(directory, metadata=None, **changes):
    """Change tensors of a checkpoint in one file; `...` deletes one."""
    tensors = load_file(directory / WEIGHTS_FILE) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not ...}
    save_file(kept, directory / WEIGHTS_FILE, metadata=metadata or {"format": "pt"})


def test_a_sound_checkpoint(tiny, sharded):
    found = verify_checkpoint(tiny, values=True)
    tensors = load_file(tiny / WEIGHTS_FILE)
    assert found.ok
    assert found.findings == ()
    assert (found.files, found.tensors, found.dtypes) == ((WEIGHTS_FILE,), len(tensors), {"F32": len(tensors)})
    assert found.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert found.data_bytes == 4 * found.parameters
    assert found.fingerprint == fingerprint_checkpoint(tiny)
    assert found.values_checked
    assert found.summary == (
        f"{tiny}: 20 tensors (20 F32) in 1 file, {found.parameters:,} parameters, {found.data_bytes:,} bytes, "
        f"{found.fingerprint}; nothing to report"
    )
    in_shards = verify_checkpoint(sharded)
    assert in_shards.findings == ()
    assert (len(in_shards.files), in_shards.data_bytes) == (3, found.data_bytes)
    assert json.loads(json.dumps(found.as_dict()))["fingerprint"] == found.fingerprint


@pytest.mark.parametrize("tie", [True, False])
def test_what_transformers_saves_has_no_findings(tmp_path, tie):
    for dtype in (torch.float32, torch.bfloat16):
        assert findings(tiny_checkpoint(tmp_path / f"{dtype}", tie=tie, dtype=dtype), values=True) == []


def test_no_directory(tiny, tmp_path):
    with pytest.raises(MissingPathError, match="no such directory"):
        verify_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is a file"):
        verify_checkpoint(tiny / WEIGHTS_FILE)


def test_an_empty_directory_lacks_three_things(tmp_path):
    assert [finding[:2] for finding in findings(tmp_path)] == [
        ("error", "config.json"),
        ("error", "weights"),
        ("error", "tokenizer.json"),
    ]


def test_every_damaged_shard_is_named(sharded):
    for number in (1, 3):
        shard = sharded / f"model-0000{number}-of-00003.safetensors"
        shard.write_bytes(shard.read_bytes()[:-4])
    found = verify_checkpoint(sharded, values=True)
    assert [finding.subject for finding in found.findings] == [found.files[0], found.files[2]]
    assert not found.ok
    assert found.fingerprint is None
    assert found.summary.endswith("no fingerprint; 2 errors")
    assert found.tensors > 0


def test_an_index_that_does_not_fit(sharded):
    weight_map = json.loads((sharded / INDEX_FILE).read_text())["weight_map"]
    edit_json(sharded / INDEX_FILE, weight_map={**weight_map, "ghost": "model-00001-of-00003.safetensors"})
    assert "no shard holds it" in only(sharded, "error", INDEX_FILE)
    edit_json(sharded / INDEX_FILE, weight_map=weight_map, metadata={"total_size": 5})
    assert "states a total_size of 5" in only(sharded, "note", INDEX_FILE)


def test_stale_shards(sharded):
    shutil.copyfile(sharded / "model-00001-of-00003.safetensors", sharded / "model-00001-of-00004.safetensors")
    message = only(sharded, "warning", "model-00001-of-00004.safetensors")
    assert "is a shard that no index names" in message
    assert "delete it" in message


def test_leftovers_beside_a_single_file(copied, sharded):
    shutil.copyfile(sharded / INDEX_FILE, copied / INDEX_FILE)
    for name in ("consolidated.safetensors", "pytorch_model.bin", "x.gguf", "training_args.bin"):
        (copied / name).write_bytes(b"")
    assert [finding[:2] for finding in findings(copied)] == [
        ("warning", INDEX_FILE),
        ("note", "consolidated.safetensors"),
        ("note", "pytorch_model.bin"),
        ("note", "x.gguf"),
    ]


def test_an_adapter_beside_the_weights(copied):
    (copied / "adapter_config.json").write_text("{}")
    (copied / "adapter_model.safetensors").write_bytes(b"")
    assert "loads the adapter on top" in only(copied, "warning", "adapter_model.safetensors")


def test_a_config_that_states_another_dtype(copied):
    edit_json(copied / "config.json", dtype="bfloat16")
    message = only(copied, "warning", "config.json")
    assert "says dtype 'bfloat16', 100% of the float data are float32" in message
    edit_json(copied / "config.json", dtype=..., torch_dtype="float16")
    assert "says dtype 'float16'" in only(copied, "warning", "config.json")
    edit_json(copied / "config.json", torch_dtype=...)
    assert findings(copied) == []
    norm = load_file(copied / WEIGHTS_FILE)["model.norm.weight"]
    rewrite(copied, **{"model.norm.weight": norm.bfloat16()})
    assert "bfloat16 64 bytes" in only(copied, "note", "dtypes")


def test_ties(copied, tmp_path):
    embedding = load_file(copied / WEIGHTS_FILE)["model.embed_tokens.weight"]
    rewrite(copied, **{"lm_head.weight": embedding.clone()})
    assert "both are the same bytes" in only(copied, "note", "lm_head.weight")
    head = embedding.clone()
    head[-1, -1] += 1
    rewrite(copied, **{"lm_head.weight": head})
    assert "stored and differs from 'model.embed_tokens.weight'" in only(copied, "warning", "lm_head.weight")
    untied = tiny_checkpoint(tmp_path / "untied", tie=False)
    edit_json(untied / "config.json", tie_word_embeddings=False)
    assert findings(untied) == []
    rewrite(untied, **{"lm_head.weight": ...})
    assert "fill it with random values" in only(untied, "error", "lm_head.weight")
    edit_json(untied / "config.json", architectures=["LlamaModel"])
    assert findings(untied) == []


def test_tokenizer_and_embedding(copied, tmp_path):
    padded = tiny_checkpoint(tmp_path / "padded", vocab_size=VOCABULARY + 8)
    size = 1 + max(json.loads((padded / "tokenizer.json").read_text())["model"]["vocab"].values())
    message = f"has {VOCABULARY + 8} rows for {size} ids: the last {VOCABULARY + 8 - size} are padding"
    assert message in only(padded, "note", "tokenizer.json")
    small = tiny_checkpoint(tmp_path / "small", vocab_size=size - 1)
    assert f"the largest id is {size - 1}, the embedding has {size - 1} rows" in only(small, "error", "tokenizer.json")
    edit_json(small / "config.json", vocab_size=size)
    assert f"has {size - 1} rows, config.json says vocab_size {size}" in findings(small)[0][2]
    (copied / "tokenizer.json").unlink()
    assert "a checkpoint without tokenizer" in only(copied, "error", "tokenizer.json")


def test_side_files_are_read(copied):
    (copied / "generation_config.json").write_text("{")
    (copied / "tokenizer_config.json").write_text("[]")
    assert [finding[:2] for finding in findings(copied)] == [
        ("error", "tokenizer_config.json"),
        ("error", "generation_config.json"),
    ]


def test_provenance(copied):
    base = {"id": None, "fingerprint": fingerprint_checkpoint(copied)}
    path = write_provenance(copied, kind="base", base=base)
    assert findings(copied) == []
    write_provenance(copied, kind="base", base={"id": None, "fingerprint": SOME_FINGERPRINT})
    assert "they changed since" in only(copied, "warning", "skillgraft.json")
    write_provenance(copied, kind="sft", base=base, inputs={"model": "blake3:12"})
    assert "holds 'blake3:12', expected blake3:<64 hex digits>" in only(copied, "warning", "skillgraft.json")
    path.write_text('{"format_version": 99}')
    assert "format_version is 99" in only(copied, "error", "skillgraft.json")


def test_recorded_inputs(copied, sharded):
    inputs = {"target": SOME_FINGERPRINT, "skill": "blake3:" + blake3(b"").hexdigest()}
    recorded = {"format": "pt", "skillgraft_inputs": json.dumps(inputs, sort_keys=True)}
    rewrite(copied, recorded)
    write_provenance(copied, kind="inject", base={}, inputs=inputs)
    assert findings(copied) == []
    write_provenance(copied, kind="inject", base={}, inputs={"target": SOME_FINGERPRINT})
    assert "names other inputs" in only(copied, "warning", "skillgraft.json")
    (copied / "skillgraft.json").unlink()
    rewrite(copied, {"format": "pt", "skillgraft_inputs": "{"})
    assert "can't be traced" in only(copied, "warning", WEIGHTS_FILE)
    rewrite(copied, {"format": "mlx"})
    assert "format is 'mlx', expected 'pt'" in only(copied, "warning", WEIGHTS_FILE)
    for number, own in ((1, recorded), (2, {"format": "pt", "skillgraft_inputs": "{}"})):
        shard = sharded / f"model-0000{number}-of-00003.safetensors"
        save_file(load_file(shard), shard, metadata=own)
    assert "expected shards of one run" in only(sharded, "warning", INDEX_FILE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values(tmp_path, dtype):
    values = torch.ones(1000, dtype=dtype)
    values[3] = values[997] = torch.nan
    values[500] = -torch.inf
    save_file({"x": values, "y": torch.ones(0, dtype=dtype)}, tmp_path / "x.safetensors")
    infos = {info.name: info for info in read_header(tmp_path / "x.safetensors").tensors}
    for size in (8, 64, 4096):
        assert count_not_finite(infos["x"], memoryview(bytearray(size))) == (2, 1)
        assert count_not_finite(infos["y"], memoryview(bytearray(size))) == (0, 0)


def test_values_that_are_not_finite_are_errors(copied):
    norm = load_file(copied / WEIGHTS_FILE)["model.norm.weight"]
    norm[:3] = torch.tensor([torch.nan, torch.inf, torch.nan])
    rewrite(copied, **{"model.norm.weight": norm})
    assert findings(copied) == []
    told = []
    message = only(copied, "error", "model.norm.weight", values=True, progress=lambda *state: told.append(state))
    assert "tensor 'model.norm.weight' holds 2 NaN and 1 infinite values among 32" in message
    total = (copied / WEIGHTS_FILE).stat().st_size + verify_checkpoint(copied).data_bytes
    assert told[0] == ((copied / WEIGHTS_FILE).stat().st_size, total)
    assert told[-1] == (total, total)
    assert len(told) == 21


def test_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("skillgraft.checkpoint.tensor_io.CHUNK_BYTES", 64)
    one = torch.arange(100.0)
    other = one.clone()
    other[99] = 0
    save_file({"a": one, "b": one.clone(), "c": other, "d": one.reshape(10, 10).clone()}, tmp_path / "x.safetensors")
    infos = {info.name: info for info in read_header(tmp_path / "x.safetensors").tensors}
    assert [same_bytes(infos["a"], infos[name]) for name in "abcd"] == [True, True, False, False]


@pytest.mark.process
def test_torch_is_imported_for_values_alone(tiny):
    code = (
        "import sys; from skillgraft.checkpoint.verify import verify_checkpoint; print(verify_checkpoint(sys.argv[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}.ok, 'torch' in sys.modules)", str(tiny)], capture_output=True, text=True
    )
    assert done.stdout == "True False\n", done.stderr
