"""Extraction from LoRA runs, against PEFT itself."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from skillgraft import adapters
from skillgraft.adapters.kind import AdapterKind
from skillgraft.adapters.lora import LoraAdapter
from skillgraft.adapters.peft_file import read_adapter
from skillgraft.arithmetic import extract, inject
from skillgraft.checkpoint import fingerprint_checkpoint, fingerprint_file, write_provenance
from skillgraft.errors import CheckpointError, CompatibilityError
from tests.tiny import edit_json, tiny_checkpoint, tiny_finetune, weights

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # Transformers', from within PEFT
BASE = {"id": None, "fingerprint": "blake3:00"}


def train_adapter(sft, path, seed=0, **settings):
    """Save a LoRA adapter with random factors on `sft`, and what PEFT makes of it merged, by name."""
    config = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(LlamaForCausalLM.from_pretrained(sft, dtype=torch.float32), LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.02
    model.save_pretrained(path)
    return model


def rl_checkpoint(sft, path, **settings):
    """An RL checkpoint as the LoRA stage writes it: merged weights and tokenizer, factors in `adapter/`."""
    shutil.copytree(sft, path)
    train_adapter(sft, path / "adapter", **settings)
    merged = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(sft, dtype=torch.float32), path / "adapter"
    ).merge_and_unload()
    merged.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def rl(models, tmp_path_factory):
    return rl_checkpoint(models / "sft", tmp_path_factory.mktemp("lora") / "rl")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"1\.mlp\.up_proj": 4}, "alpha_pattern": {"k_proj": 7}},
        {"target_modules": ["q_proj", "down_proj"]},
    ],
    ids=["plain", "rslora", "patterns", "some modules"],
)
def test_the_delta_is_pefts(models, tmp_path, settings):
    rl = rl_checkpoint(models / "sft", tmp_path / "rl", **settings)
    skill = extract(rl, models / "sft", tmp_path / "skill")
    assert skill.form == "lowrank"
    assert skill.manifest.reconstruction_error == 0.0
    factors, sft, merged = load_file(rl / "adapter/adapter_model.safetensors"), weights(models / "sft"), weights(rl)
    assert 2 * len(skill.names) == len(factors)
    for name in skill.names:
        module = name.removesuffix(".weight")
        a, b = (factors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
        rank = settings.get("rank_pattern", {}).get("q_proj", 3) if "q_proj" in name else 3
        rank = 4 if "rank_pattern" in settings and "1.mlp.up_proj" in name else rank
        alpha = 7 if "alpha_pattern" in settings and "k_proj" in name else 5
        scaling = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
        entry = skill.manifest.tensors[name]
        assert (entry.form, entry.rank, entry.shape) == ("lowrank", rank, tuple(sft[name].shape))
        assert torch.equal(skill.delta(name), (b * scaling) @ a)
        assert skill.norm(name) == pytest.approx(skill.delta(name).double().norm().item(), rel=1e-6)
        assert torch.allclose(sft[name] + skill.delta(name), merged[name], rtol=0, atol=1e-6)
    inject(models / "sft", skill, tmp_path / "again")
    again = weights(tmp_path / "again")
    assert all(torch.allclose(again[name], merged[name], rtol=0, atol=1e-6) for name in merged)


def test_an_adapter_directory_alone_gives_the_same(models, rl, tmp_path):
    from_checkpoint = extract(rl, models / "sft", tmp_path / "one")
    from_adapter = extract(rl / "adapter", models / "sft", tmp_path / "two")
    assert from_adapter.manifest.tensors == from_checkpoint.manifest.tensors
    assert from_adapter.weights_file.stat().st_size == from_checkpoint.weights_file.stat().st_size
    assert from_adapter.manifest.rl.fingerprint == fingerprint_file(rl / "adapter/adapter_model.safetensors")
    assert from_checkpoint.manifest.rl.fingerprint == fingerprint_checkpoint(rl)
    for name in from_adapter.names:
        assert torch.equal(from_adapter.delta(name), from_checkpoint.delta(name))


def test_an_adapter_in_a_folder_without_weights(models, rl, tmp_path):
    shutil.copytree(rl / "adapter", tmp_path / "rl" / "adapter")
    assert extract(tmp_path / "rl", models / "sft", tmp_path / "skill").form == "lowrank"


def test_another_kind_of_adapter_gives_its_own_delta(models, rl, tmp_path, monkeypatch):
    """An extension's kind, found by the `peft_type` that it saves, whose update is twice B @ A."""

    def read_doubled(folder):
        own = dataclasses.replace(read_adapter(rl / "adapter"), path=folder)
        return dataclasses.replace(
            own, deltas={name: delta._replace(scaling=2 * delta.scaling) for name, delta in own.deltas.items()}
        )

    doubled = AdapterKind(create=LoraAdapter, peft_type="DOUBLED", exact_delta=read_doubled, bytes_per_weight=4)
    monkeypatch.setattr(adapters, "ADAPTERS", {**adapters.ADAPTERS, "doubled": doubled})
    shutil.copytree(rl / "adapter", tmp_path / "doubled")
    edit_json(tmp_path / "doubled" / "adapter_config.json", peft_type="DOUBLED")
    plain = extract(rl / "adapter", models / "sft", tmp_path / "one")
    twice = extract(tmp_path / "doubled", models / "sft", tmp_path / "two")
    for name in plain.names:
        torch.testing.assert_close(twice.delta(name), 2 * plain.delta(name), rtol=1e-6, atol=0)


def test_bf16_factors_state_their_error(models, rl, tmp_path):
    exact = extract(rl, models / "sft", tmp_path / "exact")
    half = extract(rl, models / "sft", tmp_path / "half", dtype="bfloat16")
    lost = sum((half.delta(name) - exact.delta(name)).double().square().sum().item() for name in exact.names)
    total = sum(exact.delta(name).double().square().sum().item() for name in exact.names)
    assert half.manifest.reconstruction_error == pytest.approx((lost / total) ** 0.5, rel=1e-6)
    assert 5e-4 < half.manifest.reconstruction_error < 6e-3
    report = inject(models / "target", half, tmp_path / "grafted")
    assert report["survived_rounding"] > 0.99


def test_untrained_factors_are_left_out(models, rl, tmp_path):
    adapter = shutil.copytree(rl / "adapter", tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    kept = "base_model.model.model.layers.0.self_attn.q_proj"
    zeroed = {k: v if k.startswith(kept) else torch.zeros_like(v) if "lora_B" in k else v for k, v in tensors.items()}
    save_file(zeroed, adapter / "adapter_model.safetensors")
    skill = extract(adapter, models / "sft", tmp_path / "skill")
    assert skill.names == ("model.layers.0.self_attn.q_proj.weight",)
    save_file({k: torch.zeros_like(v) for k, v in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(CompatibilityError, match="there is no skill to extract"):
        extract(adapter, models / "sft", tmp_path / "none")


def test_a_merge_in_bf16_is_still_explained(tmp_path):
    sft = tiny_checkpoint(tmp_path / "sft", dtype=torch.bfloat16)
    rl = shutil.copytree(sft, tmp_path / "rl")
    train_adapter(sft, rl / "adapter")
    model = LlamaForCausalLM.from_pretrained(sft, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, rl / "adapter").merge_and_unload().save_pretrained(rl)
    assert extract(rl, sft, tmp_path / "skill").form == "lowrank"


def test_a_stale_adapter_is_refused(models, rl, tmp_path):
    stale = shutil.copytree(rl, tmp_path / "rl")
    shutil.rmtree(stale / "adapter")
    train_adapter(models / "sft", stale / "adapter", seed=1)
    message = r"adapter does not explain tensor 'model\.layers\..*delete the adapter folder"
    with pytest.raises(CompatibilityError, match=message):
        extract(stale, models / "sft", tmp_path / "skill")
    shutil.rmtree(stale / "adapter")
    assert extract(stale, models / "sft", tmp_path / "skill").form == "dense"


def test_a_change_outside_the_adapter_is_refused(models, rl, tmp_path):
    moved = tiny_finetune(rl, tmp_path / "rl", names=["model.norm.weight"], size=1e-2)
    with pytest.raises(CompatibilityError, match=r"does not explain tensor 'model\.norm\.weight'"):
        extract(moved, models / "sft", tmp_path / "skill")


def test_provenance_decides_what_the_adapter_is_relative_to(models, rl, tmp_path):
    """In iterative refinement RL starts at θ_SFT + v, so that the adapter is not θ_RL − θ_SFT."""
    refined = shutil.copytree(rl, tmp_path / "rl")
    write_provenance(refined, kind="rl", base=BASE, inputs={"from": fingerprint_checkpoint(models / "target")})
    skill = extract(refined, models / "sft", tmp_path / "dense")
    assert skill.form == "dense"
    merged, sft = weights(rl), weights(models / "sft")
    assert all(torch.equal(skill.delta(name), merged[name] - sft[name]) for name in skill.names)
    write_provenance(refined, kind="rl", base=BASE, inputs={"from": fingerprint_checkpoint(models / "sft")})
    assert extract(refined, models / "sft", tmp_path / "lowrank").form == "lowrank"


def test_an_adapter_trained_on_another_model_is_refused(models, rl, tmp_path):
    adapter = shutil.copytree(rl / "adapter", tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(models / "target"))
    with pytest.raises(
        CompatibilityError, match=r"trained on another model than .*sft, by its base_model_name_or_path"
    ):
        extract(adapter, models / "sft", tmp_path / "skill")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="some/hub-id")
    assert extract(adapter, models / "sft", tmp_path / "skill").form == "lowrank"


def test_an_adapter_that_does_not_fit(models, rl, tmp_path):
    small = tiny_checkpoint(tmp_path / "small", hidden_size=16)
    adapter = shutil.copytree(rl / "adapter", tmp_path / "adapter")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(CompatibilityError, match=r"the delta of 'model\.layers.* has shape \[.*\], expected \["):
        extract(adapter, small, tmp_path / "skill")
    shallow = tiny_checkpoint(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(CompatibilityError, match=r"adapts 'model\.layers\.1\..*which .*shallow does not store"):
        extract(adapter, shallow, tmp_path / "skill")


def test_an_adapter_with_another_tokenizer(models, rl, tmp_path):
    adapter = shutil.copytree(rl / "adapter", tmp_path / "adapter")
    content = json.loads((models / "sft/tokenizer.json").read_text())
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    extract(adapter, models / "sft", tmp_path / "same")
    content["model"]["vocab"]["new"] = 400
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CompatibilityError, match="have different tokenizers"):
        extract(adapter, models / "sft", tmp_path / "skill")


def test_dora_alone_is_refused_and_beside_weights_subtracted(models, tmp_path):
    rl = rl_checkpoint(models / "sft", tmp_path / "rl", use_dora=True, target_modules=["q_proj"])
    with pytest.raises(CompatibilityError, match="use_dora is True"):
        extract(rl / "adapter", models / "sft", tmp_path / "skill")
    skill = extract(rl, models / "sft", tmp_path / "skill")
    assert skill.form == "dense"
    merged, sft = weights(rl), weights(models / "sft")
    assert all(torch.equal(skill.delta(name), merged[name] - sft[name]) for name in skill.names)


def test_nan_factors(models, rl, tmp_path):
    adapter = shutil.copytree(rl / "adapter", tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(tensors))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CompatibilityError, match="holds NaN or infinity; expected finite factors") as caught:
        extract(adapter, models / "sft", tmp_path / "skill")
    assert repr(name) in str(caught.value)


def test_weights_and_adapter_at_one_level(models, rl, tmp_path):
    both = shutil.copytree(models / "rl", tmp_path / "rl")
    shutil.copytree(rl / "adapter", both, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="holds both a full checkpoint and an adapter"):
        extract(both, models / "sft", tmp_path / "skill")
