"""What mergekit 0.1.5 passes in silence must be right here or refused: one test for each such case."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from skillgraft.arithmetic import merge
from skillgraft.checkpoint import read_layout
from skillgraft.errors import CheckpointError, CompatibilityError, OutputExistsError, StorageError
from tests.tiny import edit_json, split_into_shards, tiny_checkpoint, tiny_finetune, weights

NORM = "model.norm.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def pair(tmp_path):
    """Two untied fine-tunes of one model."""
    tiny_checkpoint(tmp_path / "base", tie=False)
    tiny_finetune(tmp_path / "base", tmp_path / "other", size=0.01)
    return tmp_path


def recipe(folder, method="task_arithmetic", **more):
    return {"method": method, "base": folder / "base", "operands": [{"model": folder / "other"}], **more}


def refused(folder, match, error=CompatibilityError, **more):
    with pytest.raises(error, match=match):
        merge(recipe(folder, **more), folder / "out")
    assert not [name for name in os.listdir(folder) if "out" in name]


def resave(path, change, **metadata):
    save_file(change(weights(path)), path / "model.safetensors", metadata={"format": "pt", **metadata})


def test_tensors_outside_any_table_of_architectures_are_kept(pair):
    extra = {"model.mystery.weight": torch.randn(3, 5), "steps": torch.tensor(7)}
    resave(pair / "base", lambda tensors: {**tensors, **extra})
    resave(pair / "other", lambda tensors: {**tensors, **extra, "model.mystery.weight": torch.ones(3, 5)})
    merge(recipe(pair), pair / "out")
    made = weights(pair / "out")
    assert torch.equal(made["model.mystery.weight"], torch.ones(3, 5))
    assert made["steps"].item() == 7


def test_config_and_tokenizer_are_always_the_targets(pair):
    """Context length, RoPE and chat template of the target stay, whatever the operands' are and in whatever order."""
    edit_json(pair / "base/config.json", max_position_embeddings=4096)
    (pair / "base/chat_template.jinja").write_text("target's own")
    (pair / "other/generation_config.json").write_text('{"temperature": 9}')
    shutil.copytree(pair / "other", pair / "third")
    for number, order in enumerate((["other", "third"], ["third", "other"])):
        operands = [{"model": pair / name, "weight": 0.5} for name in order]
        for method in ("linear", "task_arithmetic", "ties", "dare"):
            out = pair / f"out-{number}-{method}"
            merge({"method": method, "base": pair / "base", "operands": operands}, out)
            for file in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
                assert (out / file).read_bytes() == (pair / "base" / file).read_bytes()


def test_a_missing_output_head_is_not_the_embedding(pair):
    resave(pair / "other", lambda tensors: {n: t for n, t in tensors.items() if n != HEAD})
    refused(pair, r"other has no tensor 'lm_head\.weight', which .*base has \(1 such\); .*tied in one file")
    resave(pair / "base", lambda tensors: {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})
    refused(pair, r"other has no tensor .*\(2 such\)")
    merge(recipe(pair, allow=["missing"]), pair / "out")
    made, base = weights(pair / "out"), weights(pair / "base")
    assert torch.equal(made[HEAD], base[HEAD])
    assert not torch.equal(made[EMBEDDING], base[EMBEDDING])


def test_extra_biases_in_an_operand(pair):
    resave(pair / "other", lambda tensors: {**tensors, "model.layers.1.mlp.up_proj.bias": torch.zeros(64)})
    refused(pair, r"base has no tensor 'model\.layers\.1\.mlp\.up_proj\.bias', which .*other has")


def test_tie_states_are_not_mixed(pair):
    edit_json(pair / "other/config.json", tie_word_embeddings=True)
    refused(pair, "tie_word_embeddings is True, expected False")


def test_other_head_counts_with_equal_shapes(pair):
    edit_json(pair / "other/config.json", num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    refused(pair, "head_dim is 4, expected 8; num_attention_heads is 8, expected 4")
    merge(recipe(pair, allow=["architecture"]), pair / "out")
    assert (pair / "out/config.json").read_bytes() == (pair / "base/config.json").read_bytes()


@pytest.mark.parametrize(
    "rope",
    [{"rope_theta": 500000.0, "rope_type": "default"}, {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}],
)
def test_other_rope_settings_with_equal_shapes(pair, rope):
    edit_json(pair / "other/config.json", rope_parameters=rope)
    refused(pair, "RoPE rope_t")


def test_permuted_token_ids_at_the_same_size(pair):
    content = json.loads((pair / "other/tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    one, two = sorted(vocab, key=vocab.get)[40:42]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (pair / "other/tokenizer.json").write_text(json.dumps(content))
    refused(pair, "have different tokenizers: token maps")
    merge(recipe(pair, allow=["tokenizer"]), pair / "out")


def test_another_shape(pair):
    resave(pair / "other", lambda tensors: {**tensors, NORM: torch.ones(31)})
    refused(pair, r"tensor 'model\.norm\.weight' has shape \[31\] in .*other and \[32\] in .*base")


def test_fp32_operands_are_not_rounded_before_the_subtraction(pair):
    """In bf16 the difference would be 0 or 2⁻⁷; it is 1e-4."""
    for name in ("base", "other"):
        resave(
            pair / name, lambda tensors, step=(name == "other"): {**tensors, NORM: torch.full((32,), 1 + 1e-4 * step)}
        )
        edit_json(pair / name / "config.json", dtype="bfloat16")
    merge(recipe(pair), pair / "out")
    assert torch.equal(weights(pair / "out")[NORM], weights(pair / "other")[NORM])
    half = merge({**recipe(pair), "dtype": "bfloat16"}, pair / "half")
    assert half["tensors"][NORM]["survived_rounding"] == pytest.approx(0.0, abs=1e-6)  # said, not silent


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare", "dare_ties"])
@pytest.mark.parametrize("where", ["base", "other"])
def test_nan_and_infinity_are_never_passed_on(pair, method, value, where):
    def change(tensors):
        tensors[NORM][5] = value
        return tensors

    resave(pair / where, change)
    if where == "base" and method == "linear":
        merge(recipe(pair, method=method), pair / "out")  # the base is no operand of it
    else:
        refused(pair, rf"{where}: tensor 'model\.norm\.weight' holds NaN or infinity \(1 of", method=method)


@pytest.mark.parametrize("method", ["slerp", "model_stock"])
def test_nan_with_methods_of_two(pair, method):
    shutil.copytree(pair / "other", pair / "third")

    def change(tensors):
        tensors[NORM][5] = float("nan")
        return tensors

    resave(pair / "third", change)
    operands = [{"model": pair / "other"}, {"model": pair / "third"}]
    refused(pair, r"third: tensor 'model\.norm\.weight' holds NaN", method=method, operands=operands)


def test_fp8_codes_are_not_merged_raw(pair):
    resave(pair / "other", lambda tensors: {**tensors, NORM: tensors[NORM].to(torch.float8_e4m3fn)})
    refused(pair, r"tensor 'model\.norm\.weight' is stored as F8_E4M3", CheckpointError)


def test_quantised_and_pickled_weights(pair):
    edit_json(pair / "other/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refused(pair, "quantization_config: the weights are quantised", CheckpointError)
    edit_json(pair / "other/config.json", quantization_config=...)
    (pair / "other/model.safetensors").rename(pair / "other/pytorch_model.bin")
    refused(pair, "pickle weights only", CheckpointError)
    (pair / "other/pytorch_model.bin").rename(pair / "other/model.gguf")
    refused(pair, "GGUF weights only", CheckpointError)


def test_an_existing_output_is_left_alone(pair):
    """An earlier, larger run would leave stale shards and an index: nothing is written into what is there."""
    split_into_shards(pair / "base", pair / "out")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (pair / "out").iterdir())
    with pytest.raises(OutputExistsError, match="out exists already and nothing is overwritten"):
        merge(recipe(pair), pair / "out")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (pair / "out").iterdir()) == before


def test_a_crash_before_the_tokenizer_leaves_no_model(pair, monkeypatch):
    from skillgraft.arithmetic import merge as module

    def crash(*_):
        raise OSError("the machine went away")

    monkeypatch.setattr(importable("skillgraft.arithmetic.merging"), "copy_sidecar_files", crash)
    with pytest.raises(OSError, match="went away"):
        merge(recipe(pair), pair / "out")
    assert not [name for name in os.listdir(pair) if "out" in name]
    assert module is merge


def importable(name):
    import importlib

    return importlib.import_module(name)


def test_a_disk_that_fills_up_leaves_nothing(pair, monkeypatch):
    import errno

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    refused(pair, "out: the disk is full", StorageError)


def test_relative_paths_with_slashes_work_offline(pair, monkeypatch):
    monkeypatch.chdir(pair)
    (pair / "models").mkdir()
    (pair / "other").rename(pair / "models/other")
    data = {"method": "linear", "base": "base", "operands": [{"model": "models/other"}]}
    merge(data, "results/of/today")
    assert read_layout("results/of/today").tensors.keys() == read_layout("base").tensors.keys()


def test_an_index_that_leaves_the_directory(pair):
    split_into_shards(pair / "other", pair / "sharded")
    (pair / "other/model.safetensors").unlink()
    shutil.copytree(pair / "sharded", pair / "other", dirs_exist_ok=True)
    index = json.loads((pair / "other/model.safetensors.index.json").read_text())
    index["weight_map"][NORM] = "../base/model.safetensors"
    (pair / "other/model.safetensors.index.json").write_text(json.dumps(index))
    refused(pair, "can leave the directory; expected the plain name", CheckpointError)


def test_a_truncated_shard(pair):
    path = pair / "other/model.safetensors"
    os.truncate(path, path.stat().st_size - 5)
    refused(pair, "truncated", CheckpointError)


def test_two_processes_do_not_write_one_output(pair):
    import fcntl

    from skillgraft.checkpoint.writer import BusyOutputError

    def second(done, total):
        with pytest.raises(BusyOutputError, match="another process is writing it"):
            merge(recipe(pair), pair / "out")

    assert fcntl.LOCK_NB
    merge(recipe(pair), pair / "out", progress=second)
    assert (pair / "out/model.safetensors").is_file()
