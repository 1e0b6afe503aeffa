import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillgraft.checkpoint import read_layout
from skillgraft.checkpoint.layout import INDEX_FILE, WEIGHTS_FILE
from skillgraft.errors import CheckpointError, MissingPathError
from tests.tiny import edit_json, split_into_shards, tiny_checkpoint, weights


def test_layout_holds_every_tensor_of_the_file(tiny):
    layout = read_layout(tiny)
    expected = load_file(tiny / WEIGHTS_FILE)
    assert layout.path == tiny
    assert layout.config["model_type"] == "llama"
    assert layout.index is None
    assert layout.files == (tiny / WEIGHTS_FILE,)
    assert layout.tensors.keys() == expected.keys()
    assert "lm_head.weight" not in layout.tensors
    for name, info in layout.tensors.items():
        assert (info.dtype, info.shape) == ("F32", tuple(expected[name].shape))
        assert torch.equal(layout.read(name), expected[name])
    begins = [info.begin for info in layout.tensors.values()]
    assert begins == sorted(begins)


def test_shards_read_the_same(tiny, tmp_path):
    sharded = read_layout(split_into_shards(tiny, tmp_path / "sharded"))
    whole = read_layout(tiny)
    assert len(sharded.files) == 3
    assert sharded.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(sharded.read(name), whole.read(name)) for name in whole.tensors)


def test_shards_written_by_transformers_are_read(tiny, tmp_path):
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(tiny).save_pretrained(tmp_path / "sharded", max_shard_size="40KB")
    layout = read_layout(tmp_path / "sharded")
    assert len(layout.files) > 1
    expected = weights(tiny)
    assert layout.tensors.keys() == expected.keys()
    assert all(torch.equal(layout.read(name), tensor) for name, tensor in expected.items())


def test_bfloat16_is_read_as_stored(tmp_path):
    layout = read_layout(tiny_checkpoint(tmp_path / "m", dtype=torch.bfloat16))
    assert {info.dtype for info in layout.tensors.values()} == {"BF16"}
    assert layout.read("model.norm.weight").dtype == torch.bfloat16


def test_unknown_tensor_name_gets_a_hint(tiny):
    with pytest.raises(CheckpointError, match=r"no tensor 'model.norm.weigth'; did you mean 'model.norm.weight'"):
        read_layout(tiny).read("model.norm.weigth")


def test_missing_directory(tmp_path):
    with pytest.raises(MissingPathError, match=r"nowhere: no such directory; expected a checkpoint"):
        read_layout(tmp_path / "nowhere")


def test_a_file_is_no_checkpoint(tiny):
    with pytest.raises(CheckpointError, match=r"config\.json is a file; expected the checkpoint's directory"):
        read_layout(tiny / "config.json")


def test_no_config(copied):
    (copied / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_layout(copied)
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is a PEFT adapter.*merge_and_unload"):
        read_layout(copied)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_damaged_config(copied, text):
    (copied / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        read_layout(copied)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), r"no weights; expected model\.safetensors or model\.safetensors\.index\.json"),
        (("pytorch_model.bin", "training_args.bin"), r"pickle weights only \(pytorch_model\.bin.*convert them"),
        (("model.pt",), r"pickle weights only \(model\.pt\)"),
        (("model-Q8_0.gguf",), r"GGUF weights only \(model-Q8_0\.gguf\)"),
        (("model-00001-of-00002.safetensors",), r"found model-00001-of-00002\.safetensors without model\.safetens"),
    ],
)
def test_no_safetensors_weights(copied, files, message):
    (copied / WEIGHTS_FILE).unlink()
    for name in files:
        (copied / name).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=message):
        read_layout(copied)


def test_safetensors_beside_pickles_are_taken(copied):
    (copied / "pytorch_model.bin").write_bytes(b"x")
    assert len(read_layout(copied).tensors) == 20


def test_quantised_configs_are_refused(copied):
    edit_json(copied / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(CheckpointError, match=r"config\.json has a quantization_config.*bfloat16"):
        read_layout(copied)
    edit_json(copied / "config.json", quantization_config=None)
    read_layout(copied)


def test_fp8_weights_are_refused(copied):
    save_file({"model.x": torch.ones(4).to(torch.float8_e4m3fn)}, copied / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor 'model\.x' is stored as F8_E4M3"):
        read_layout(copied)


def test_truncated_shard(tiny, tmp_path):
    sharded = split_into_shards(tiny, tmp_path / "sharded")
    shard = sharded / "model-00002-of-00003.safetensors"
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 100)
    message = rf"model-00002-of-00003\.safetensors: truncated.* says {size} bytes, the file has {size - 100} "
    with pytest.raises(CheckpointError, match=message):
        read_layout(sharded)


def test_a_file_without_tensors_is_refused(copied):
    save_file({}, copied / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match="safetensors hold no tensor"):
        read_layout(copied)


def test_a_tensor_in_two_shards_is_refused(tiny, tmp_path):
    sharded = split_into_shards(tiny, tmp_path / "sharded")
    first, second = (sharded / f"model-0000{number}-of-00003.safetensors" for number in (1, 2))
    twice = {**load_file(second), "model.embed_tokens.weight": torch.zeros(2)}
    assert "model.embed_tokens.weight" in load_file(first)
    save_file(twice, second)
    message = r"'model\.embed_tokens\.weight' is in model-00001.* and in model-00002"
    with pytest.raises(CheckpointError, match=message):
        read_layout(sharded)


@pytest.fixture
def indexed(tiny, tmp_path):
    """A sharded checkpoint and a function that edits its weight map."""
    sharded = split_into_shards(tiny, tmp_path / "sharded")

    def edit(**changes):
        path = sharded / INDEX_FILE
        weight_map = json.loads(path.read_text())["weight_map"] | changes
        edit_json(path, weight_map={key: value for key, value in weight_map.items() if value is not ...})
        return sharded

    return edit


def test_an_index_that_names_a_tensor_no_shard_holds(indexed):
    sharded = indexed(ghost="model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"puts tensor 'ghost' into model-00001.*no shard holds it"):
        read_layout(sharded)


def test_an_index_that_names_the_wrong_shard(indexed):
    sharded = indexed(**{"model.embed_tokens.weight": "model-00003-of-00003.safetensors"})
    message = r"'model\.embed_tokens\.weight' into model-00003.*, but it is in model-00001"
    with pytest.raises(CheckpointError, match=message):
        read_layout(sharded)


def test_a_tensor_that_the_index_does_not_list(indexed):
    sharded = indexed(**{"model.norm.weight": ...})
    with pytest.raises(CheckpointError, match=r"holds tensor 'model\.norm\.weight', which the index does not list"):
        read_layout(sharded)


def test_a_missing_shard(indexed):
    sharded = indexed()
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"into model-00002-of-00003\.safetensors, which is missing"):
        read_layout(sharded)


@pytest.mark.parametrize(
    "shard", ["../other/model.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", 3, "a\0b"]
)
def test_an_index_path_that_leaves_the_directory(indexed, tiny, shard):
    sharded = indexed(**{"model.norm.weight": shard})
    shutil.copytree(tiny, sharded.parent / "other")
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is mapped to .* can leave the directory"):
        read_layout(sharded)


def test_symbolic_links_are_followed_as_the_hub_cache_needs(tiny, tmp_path):
    (tmp_path / "snapshot").mkdir()
    for file in tiny.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert read_layout(tmp_path / "snapshot").tensors.keys() == read_layout(tiny).tensors.keys()


@pytest.mark.parametrize("content", ['{"metadata": {}}', '{"weight_map": []}', '{"weight_map": {}}', "[", "3"])
def test_damaged_index(indexed, content):
    sharded = indexed()
    (sharded / INDEX_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: "):
        read_layout(sharded)
