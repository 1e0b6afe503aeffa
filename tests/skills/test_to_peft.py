"""A skill as a PEFT adapter: the same deltas, the same logits, and a reason where that cannot be."""

import json
import math
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from skillgraft.adapters.peft_file import read_adapter
from skillgraft.arithmetic import extract, inject, merge
from skillgraft.arithmetic.merge_recipe import load_merge_recipe
from skillgraft.arithmetic.mergekit import mergekit_yaml
from skillgraft.errors import CheckpointError, CompatibilityError, RecipeError
from skillgraft.skills.to_peft import best_factors, convert_to_peft
from tests.tiny import edit_json, tiny_checkpoint, tiny_finetune, weights

# fp32 forward passes sum W·x + B·(A·x) in another order than (W + B·A)·x; logits here are below 1.
LOGITS_TOLERANCE = 1e-5
UP, QUERY = "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def lora(tiny, tmp_path_factory):
    """A skill from an adapter with two ranks and two scalings, and the adapter."""
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(0)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["up_proj", "down_proj", "q_proj", "v_proj"],
        rank_pattern={"q_proj": 2},
        alpha_pattern={"q_proj": 3},
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    from peft import get_peft_model

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config)
    model.save_pretrained(folder / "adapter")
    return extract(folder / "adapter", tiny, folder / "skill", domain="almanac"), folder / "adapter"


@pytest.fixture(scope="module")
def full(tiny, tmp_path_factory):
    """A skill of full rank on matrices, norms and the embedding."""
    folder = tmp_path_factory.mktemp("full")
    return extract(tiny_finetune(tiny, folder / "rl", size=1e-2), tiny, folder / "skill")


@pytest.fixture
def target(tiny, tmp_path):
    return tiny_finetune(tiny, tmp_path / "target", seed=5)


def logits(model):
    tokens = torch.arange(3, 83).reshape(2, 40)
    with torch.no_grad():
        return model.eval()(tokens).logits


def deltas(adapter):
    read = read_adapter(adapter).deltas
    tensors = load_file(adapter / "adapter_model.safetensors")
    return {
        name: delta.scaling * tensors[delta.b.name].double() @ tensors[delta.a.name].double()
        for name, delta in read.items()
    }


@pytest.mark.parametrize(("scale", "pad"), [(1.0, False), (1.0, True), (-0.75, False)])
def test_peft_and_transformers_give_the_injected_logits(lora, target, tmp_path, scale, pad):
    skill, _ = lora
    report = convert_to_peft(skill, tmp_path / "adapter", scale=scale, pad=pad)
    inject(target, skill, tmp_path / "grafted", scale=scale)
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "grafted"))
    plain = AutoModelForCausalLM.from_pretrained(target)
    assert (logits(plain) - expected).abs().max() > 1000 * LOGITS_TOLERANCE
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(target), tmp_path / "adapter")
    assert (logits(peft) - expected).abs().max() < LOGITS_TOLERANCE
    loaded = AutoModelForCausalLM.from_pretrained(target)
    loaded.load_adapter(str(tmp_path / "adapter"))
    assert (logits(loaded) - expected).abs().max() < LOGITS_TOLERANCE
    merged = peft.merge_and_unload()
    assert (logits(merged) - expected).abs().max() < LOGITS_TOLERANCE
    assert report["exact"]
    assert report["error"] == 0.0
    assert (report["modules"], report["rank"]) == (8, 4)


def test_the_factors_are_the_skills(lora, tmp_path):
    skill, _ = lora
    convert_to_peft(skill, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name in skill.names:
        a, b = skill.factors(name)
        module = f"base_model.model.{name.removesuffix('.weight')}"
        assert torch.equal(tensors[f"{module}.lora_A.weight"], a)
        assert torch.equal(tensors[f"{module}.lora_B.weight"], b)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 4)  # one scaling of 1 for loaders that read no patterns
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert sorted(config["rank_pattern"].values()) == [2, 2]
    assert config["target_modules"] == sorted(name.removesuffix(".weight") for name in skill.names)
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_padding_gives_one_rank_and_the_same_product(lora, tmp_path):
    skill, _ = lora
    convert_to_peft(skill, tmp_path / "adapter", pad=True)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (4, {}, {})
    for name, delta in deltas(tmp_path / "adapter").items():
        a, b = (factor.double() for factor in skill.factors(name))
        assert torch.allclose(delta, b @ a, rtol=0, atol=1e-14)


def test_there_and_back_is_the_same_skill(lora, tiny, tmp_path):
    skill, _ = lora
    convert_to_peft(skill, tmp_path / "adapter")
    again = extract(tmp_path / "adapter", tiny, tmp_path / "again")
    assert again.names == skill.names
    for name in skill.names:
        assert all(torch.equal(one, two) for one, two in zip(again.factors(name), skill.factors(name), strict=True))


def test_bfloat16_factors_stay_bfloat16(lora, tiny, tmp_path):
    _, adapter = lora
    half = extract(adapter, tiny, tmp_path / "half", dtype="bfloat16")
    convert_to_peft(half, tmp_path / "one")
    assert {t.dtype for t in load_file(tmp_path / "one" / "adapter_model.safetensors").values()} == {torch.bfloat16}
    convert_to_peft(half, tmp_path / "scaled", scale=0.3)
    for name, delta in deltas(tmp_path / "scaled").items():
        a, b = (factor.double() for factor in half.factors(name))
        assert torch.allclose(delta, 0.3 * b @ a, rtol=0, atol=1e-7)


def test_full_rank_is_refused_by_name(full, tmp_path):
    message = (
        r"20 of 20 tensors, 100\.0% of the skill's norm, don't fit.*embed_tokens.*no linear module.*--rank.*--drop"
    )
    with pytest.raises(CompatibilityError, match=message):
        convert_to_peft(full, tmp_path / "adapter")
    with pytest.raises(CompatibilityError, match=r"6 of 20 tensors, .*norm\.weight.*leave them out with --drop, or"):
        convert_to_peft(full, tmp_path / "adapter", rank=4)
    with pytest.raises(CompatibilityError, match="no delta is on a linear module"):
        convert_to_peft(full, tmp_path / "adapter", drop=True)
    assert list(tmp_path.iterdir()) == []


def test_a_bounded_rank_says_its_error(full, tmp_path):
    report = convert_to_peft(full, tmp_path / "adapter", rank=4, drop=True, scale=2.0)
    found = deltas(tmp_path / "adapter")
    lost = {name: 2.0 * full.norm(name) for name in full.names if name not in found}
    assert sorted(lost) == sorted(report["dropped"])
    assert report["dropped"]["model.norm.weight"] == full.norm("model.norm.weight")
    for name, delta in found.items():
        exact = 2.0 * full.delta(name).double()
        lost[name] = (delta - exact).norm().item()
        assert lost[name] == pytest.approx(2.0 * torch.linalg.svdvals(exact / 2.0)[4:].norm().item(), rel=1e-5)
    whole = 2.0 * full.manifest.norm
    assert report["error"] == pytest.approx(math.sqrt(sum(x * x for x in lost.values())) / whole, rel=1e-5)
    assert report["error_by_kind"]["norm"] == pytest.approx(1.0)
    assert not report["exact"]
    assert any("6 tensors were left out" in remark for remark in report["remarks"])


def test_the_whole_rank_loses_nothing(full, tmp_path):
    report = convert_to_peft(full, tmp_path / "adapter", rank=64, drop=True)
    assert report["rank"] == 32
    for name, delta in deltas(tmp_path / "adapter").items():
        assert torch.allclose(delta, full.delta(name).double(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6), (3, 1)])
def test_best_factors_against_the_svd(shape):
    torch.manual_seed(1)
    matrix = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    for rank in range(1, min(shape) + 1):
        a, b = best_factors(matrix, rank)
        assert (a.shape, b.shape) == ((rank, shape[1]), (shape[0], rank))
        expected = u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]
        assert torch.allclose(b.double() @ a.double(), expected, rtol=0, atol=1e-6)
        assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-5)  # the singular values are shared evenly
    a, b = best_factors(torch.zeros(shape), 1)
    assert not a.any()
    assert not b.any()


@pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf")])
def test_scales_that_make_no_sense(lora, tmp_path, scale):
    with pytest.raises(RecipeError, match="expected a finite number other than 0"):
        convert_to_peft(lora[0], tmp_path / "adapter", scale=scale)


def test_an_overflow_is_refused(lora, tmp_path):
    with pytest.raises(CompatibilityError, match="times 1e\\+39 are not finite in F32"):
        convert_to_peft(lora[0], tmp_path / "adapter", scale=1e39)
    assert not (tmp_path / "adapter").exists()


def test_a_model_with_transposed_weights(lora, tmp_path):
    from skillgraft.skills import load_skill

    skill = lora[0]
    architecture = json.loads((skill.path / "skill.json").read_text())["architecture"]
    edit_json(skill.path / "skill.json", architecture={**architecture, "model_type": "gpt2"})
    try:
        with pytest.raises(CompatibilityError, match=r"gpt2 stores \(in, out\)"):
            convert_to_peft(load_skill(skill.path), tmp_path / "adapter")
    finally:
        edit_json(skill.path / "skill.json", architecture=architecture)


@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_a_damaged_skill(lora, full, tmp_path, value):
    """Numbers that are not those of the manifest: as factors, and to be cut to a rank."""
    for skill, name, settings in ((lora[0], "lowrank_a", {}), (full, "q_proj.weight", {"rank": 2, "drop": True})):
        copied = shutil.copytree(skill.path, tmp_path / name)
        tensors = load_file(copied / "skill.safetensors")
        key = next(key for key in tensors if key.endswith(name))
        tensors[key] = tensors[key] * value
        save_file(tensors, copied / "skill.safetensors")
        with pytest.raises(CheckpointError, match=r"the delta of '.*' has norm .*, expected .* from skill\.json"):
            convert_to_peft(copied, tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("model.layers.0.mlp.experts.3.up_proj.weight", [64, 32], "one of the experts that Transformers stacks"),
        ("model.layers.0.mlp.experts.gate_up_proj", [4, 32, 64], "no linear module's weight"),
        ("model.word_lookup.weight", [320, 32], "no linear module's weight"),
        ("model.layers.0.self_attn.q_proj.bias", [64], "no linear module's weight"),
        ("model.layers.0.conv.weight", [8, 1, 4], "no linear module's weight"),
    ],
)
def test_what_no_lora_holds(full, tmp_path, name, shape, reason):
    """Whatever a loader would skip in silence is refused here."""
    from skillgraft.skills.skill import Skill
    from skillgraft.skills.to_peft import _plan

    entry = full.entry("model.norm.weight").model_copy(update={"shape": tuple(shape)})
    manifest = full.manifest.model_copy(update={"tensors": {name: entry}})
    modules, unfit = _plan(Skill(full.path, manifest, {}), 4)
    assert modules == []
    assert reason in unfit[name]


def test_what_vllm_needs_is_said(lora, full, tmp_path):
    report = convert_to_peft(lora[0], tmp_path / "small")
    assert not any("vLLM" in remark for remark in report["remarks"])  # its default suffices
    assert any("rank_pattern" in remark for remark in report["remarks"])
    assert not any("vLLM" in remark for remark in convert_to_peft(full, tmp_path / "16", rank=16, drop=True)["remarks"])
    report = convert_to_peft(full, tmp_path / "17", rank=17, drop=True)
    assert "vLLM needs --max-lora-rank 32 (its default is 16)" in report["remarks"]


def test_an_output_head_is_adapted(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", tie=False)
    skill = extract(tiny_finetune(base, tmp_path / "rl", names=["lm_head.weight"], size=1e-2), base, tmp_path / "skill")
    report = convert_to_peft(skill, tmp_path / "adapter", rank=32)
    assert any("lm_head.weight is adapted, which not every server supports" in remark for remark in report["remarks"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
    expected = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "rl"))
    assert (logits(model) - expected).abs().max() < LOGITS_TOLERANCE


def test_mergekit_takes_the_adapter(lora, target, tmp_path):
    """A skill has no mergekit equivalent; the adapter made of it has, and merging it is injecting the skill."""
    skill, _ = lora
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(f"method: task_arithmetic\nbase: {target}\noperands: [{{skill: {skill.path}}}]\n")
    with pytest.raises(RecipeError, match="make one of it with skillgraft skill convert --to peft"):
        mergekit_yaml(load_merge_recipe(recipe))
    convert_to_peft(skill, tmp_path / "adapter")
    recipe.write_text(f"method: task_arithmetic\nbase: {target}\noperands: [{{adapter: {tmp_path / 'adapter'}}}]\n")
    assert f"model: {target}+{tmp_path / 'adapter'}" in mergekit_yaml(load_merge_recipe(recipe))
    inject(target, skill, tmp_path / "injected")
    merge(recipe, tmp_path / "merged")
    merged = weights(tmp_path / "merged")
    assert all(torch.equal(merged[name], tensor) for name, tensor in weights(tmp_path / "injected").items())
