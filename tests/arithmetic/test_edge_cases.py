"""Cases that a hostile reading of the engine found: each was wrong once."""

import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skillgraft.arithmetic import extract, inject, inject_scales, merge
from skillgraft.arithmetic.merge_recipe import parse_merge_recipe
from skillgraft.arithmetic.plan import plan_merge
from skillgraft.errors import CheckpointError, CompatibilityError, RecipeError, StorageError
from tests.arithmetic.test_kill import killed_after
from tests.tiny import edit_json, split_into_shards, tiny_checkpoint, tiny_finetune, weights

NORM = "model.norm.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def models(tmp_path):
    tiny_checkpoint(tmp_path / "base")
    for seed, name in enumerate("abc", start=1):
        tiny_finetune(tmp_path / "base", tmp_path / name, seed=seed, size=0.01)
    return tmp_path


def change(path, dtype=None, **tensors):
    kept = {name: tensor for name, tensor in {**weights(path), **tensors}.items() if tensor is not None}
    save_file({n: t.to(dtype) if dtype else t for n, t in kept.items()}, path / "model.safetensors", {"format": "pt"})


def run(models, method, *operands, out="out", **more):
    given = [o if isinstance(o, dict) else {"model": models / o} for o in operands]
    return merge({"method": method, "base": models / "base", "operands": given, **more}, models / out)


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF, 0x7FFF8000, 0xFF800001])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "dare"])
def test_no_bit_pattern_of_nan_becomes_a_number(models, method, bits):
    bad = torch.ones(32)
    bad[3] = torch.from_numpy(np.array([bits], dtype=np.uint32).view(np.float32).copy())[0]
    change(models / "a", **{NORM: bad})
    parameters = {"density": 1.0} if method == "dare" else {}
    with pytest.raises(CompatibilityError, match=r"a: tensor 'model\.norm\.weight' holds NaN or infinity \(1 of"):
        run(models, method, "a", dtype="bfloat16", parameters=parameters)
    with pytest.raises(CompatibilityError, match=r"a: tensor 'model\.norm\.weight' holds 1 elements that are NaN"):
        extract(models / "a", models / "base", models / "skill", dtype="bfloat16")


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_ties_with_empty_tensors_zero_vectors_and_huge_numbers(models, scope):
    for name in ("base", "a", "b"):
        change(models / name, torch.float64, empty=torch.empty(0, 4))
    huge = weights(models / "a")[NORM]
    huge[:16] = torch.arange(1, 17, dtype=torch.float64) * 1e39
    change(models / "a", **{NORM: huge})
    shutil.copytree(models / "base", models / "same")
    run(models, "ties", "a", "same", parameters={"density": 0.2, "scope": scope})
    made = weights(models / "out")
    assert made["empty"].shape == (0, 4)
    assert torch.equal(made[NORM][:16], huge[:16])  # beyond fp32 all magnitudes tie, and ties are kept


def test_a_difference_from_a_model_without_the_tensor_is_none(models):
    for name in ("base", "a"):
        change(models / name, extra=torch.full((4,), 2.0 if name == "a" else 1.0))
    run(models, "task_arithmetic", {"model": models / "a", "minus": models / "b"}, allow=["missing"])
    assert weights(models / "out")["extra"].tolist() == [1.0] * 4


def test_an_input_replaced_after_the_plan_is_noticed(models, monkeypatch):
    import skillgraft.arithmetic.merging as merging

    whole = merging.gather_statistics

    def replace(*arguments):
        tiny_finetune(models / "base", models / "new", seed=9)
        os.replace(models / "new/model.safetensors", models / "a/model.safetensors")
        return whole(*arguments)

    monkeypatch.setattr(merging, "gather_statistics", replace)
    with pytest.raises(CheckpointError, match=r"a/model\.safetensors: replaced or changed since its header was read"):
        run(models, "linear", "a")
    assert not (models / "out").exists()


def make_adapter(models):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models / "base")
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False))
    peft.save_pretrained(models / "adapter")
    return models / "adapter"


@pytest.mark.process
def test_another_scaling_is_other_work(models):
    split_into_shards(models / "base", models / "sharded", shards=3)
    adapter = make_adapter(models)
    recipe = {"method": "task_arithmetic", "base": str(models / "sharded"), "operands": [{"adapter": str(adapter)}]}
    killed_after(1, recipe, models / "out")
    edit_json(adapter / "adapter_config.json", lora_alpha=400)
    merge(recipe, models / "out")
    merge(recipe, models / "fresh")
    fresh = weights(models / "fresh")
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in weights(models / "out").items())


@pytest.mark.process
def test_small_files_of_a_killed_run_are_written_anew(models):
    split_into_shards(models / "base", models / "sharded", shards=2)
    recipe = {"method": "linear", "base": str(models / "sharded"), "operands": [{"model": str(models / "a")}]}
    killed_after(1, recipe, models / "out")
    (partial,) = (path for path in models.iterdir() if path.name.startswith(".out.partial-of-"))
    (partial / "generation_config.json").write_text("stale")
    (models / "sharded/generation_config.json").unlink()
    merge(recipe, models / "out")
    assert not (models / "out/generation_config.json").exists()
    assert not [path for path in models.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("method", ["slerp", "model_stock"])
def test_methods_of_angles_need_every_operand(models, method):
    for name in ("base", "a"):
        change(models / name, extra=torch.full((4,), 2.0 if name == "a" else 1.0))
    run(models, method, "a", "b", allow=["missing"])
    assert weights(models / "out")["extra"].tolist() == [1.0] * 4


def test_the_base_counts_in_model_stock_however_it_is_spelled(models):
    shutil.copytree(models / "base", models / "copy")
    run(models, "model_stock", "a", "b", "base", out="one")
    run(models, "model_stock", "a", "b", "copy", out="two")
    one, two = weights(models / "one"), weights(models / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_half_of_a_stored_tie_is_not_changed(models):
    skill = extract(models / "a", models / "base", models / "skill")
    change(models / "b", **{HEAD: weights(models / "b")[EMBEDDING].clone()})
    with pytest.raises(CompatibilityError, match=r"ties 'model\.embed_tokens\.weight' and 'lm_head\.weight'"):
        inject(models / "b", skill, models / "out")
    with pytest.raises(CompatibilityError, match=r"only 'model\.embed_tokens\.weight' would change"):
        merge({"method": "task_arithmetic", "base": models / "b", "operands": [{"skill": skill.path}]}, models / "out")


@pytest.mark.parametrize("method", ["slerp", "model_stock"])
def test_angles_are_those_of_the_rows_that_all_have(tmp_path, method):
    tiny_checkpoint(tmp_path / "base", seed=1, tie=False, vocab_size=336)
    tiny_checkpoint(tmp_path / "small", seed=2, tie=False)
    for name, seed in (("large", 3), ("other", 3)):
        tiny_checkpoint(tmp_path / name, seed=seed, tie=False, vocab_size=352)
    loud = weights(tmp_path / "other")
    for name in (EMBEDDING, HEAD):
        loud[name][320:] *= 100.0  # rows that the small model does not have
    save_file(loud, tmp_path / "other/model.safetensors", metadata={"format": "pt"})
    run(tmp_path, method, "small", "large", out="one")
    run(tmp_path, method, "small", "other", out="two")
    one, two, base = (weights(tmp_path / name) for name in ("one", "two", "base"))
    for name in (EMBEDDING, HEAD):
        assert torch.equal(one[name], two[name])
        assert torch.equal(one[name][320:], base[name][320:])
        assert not torch.equal(one[name][:320], base[name][:320])


def test_a_negative_weight_stays_negative_in_an_election(models):
    given = {"density": 1.0, "scope": "tensor"}
    run(models, "ties", {"model": models / "a", "weight": -1.0}, parameters=given)
    base, a, made = weights(models / "base")[NORM], weights(models / "a")[NORM], weights(models / "out")[NORM]
    assert torch.allclose(made - base, base - a, atol=1e-6)


def test_a_tiny_scale_is_no_damage(models):
    skill = extract(models / "a", models / "base", models / "skill")
    assert inject(models / "b", skill, models / "out", scale=1e-200)["scale"] == 1e-200


def test_a_killed_sweep_appears_whole_or_not_at_all(models, monkeypatch):
    skill = extract(models / "a", models / "base", models / "skill")

    from skillgraft.arithmetic.injection import ledger

    def crash(*_, **__):
        raise OSError("gone")

    monkeypatch.setattr(ledger, "write_provenance", crash)
    with pytest.raises(OSError, match="gone"):
        inject_scales(models / "b", skill, models / "sweep", [0, 1])
    assert not [path for path in models.iterdir() if "sweep" in path.name]


def test_the_report_is_in_the_plans_order(models):
    split_into_shards(models / "base", models / "sharded", shards=3)
    data = {"method": "task_arithmetic", "base": models / "sharded", "operands": [{"model": models / "a"}]}
    order = [tensor.spec.name for tensor in plan_merge(parse_merge_recipe(data)).tensors]
    assert list(merge(data, models / "out", threads=8)["tensors"]) == order


def test_mistakes_that_once_were_tracebacks(models):
    a = {"model": models / "a"}
    with pytest.raises(RecipeError, match="write it out"):
        run(models, "linear", {"model": "~nobody-at-all/x"})
    with pytest.raises(RecipeError, match="holds a NUL byte"):
        run(models, "linear", {"model": "a\0b"})
    with pytest.raises(RecipeError, match="are all 0"):
        run(models, "linear", {**a, "weight": 0}, parameters={"normalize": False})
    with pytest.raises(StorageError, match="File name too long"):
        run(models, "linear", "a", out="x" * 250)
    for device in ("meta", "tpu9"):
        with pytest.raises(RecipeError, match="can't compute"):
            merge({"method": "linear", "base": models / "base", "operands": [a]}, models / "out", device=device)
    with pytest.raises(RecipeError, match="threads is -1"):
        merge({"method": "linear", "base": models / "base", "operands": [a]}, models / "out", threads=-1)
    deep = models / "deep.yaml"
    deep.write_text("[" * 5000)
    with pytest.raises(RecipeError, match="is not YAML"):
        merge(deep, models / "out")
