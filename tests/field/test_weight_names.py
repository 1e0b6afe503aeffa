"""Names on disk against names in memory: Gemma 3, LLaVA, Mixtral, by Transformers' own table."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from skillgraft.adapters import read_adapter
from skillgraft.arithmetic import extract, inject
from skillgraft.checkpoint.layout import read_layout
from skillgraft.checkpoint.weight_names import check_one_to_one, names_of_checkpoint, names_of_type, stored_names
from skillgraft.errors import CompatibilityError, RecipeError
from skillgraft.skills import load_skill
from skillgraft.skills.to_peft import convert_to_peft
from tests.field.families import checkpoint, deepseek_v3, gemma3, llava, mixtral
from tests.tiny import tiny_checkpoint, weights

IDS = torch.tensor([[5, 6, 7, 8, 9]])
PICTURES = pytest.mark.parametrize(
    ("config", "auto"), [(gemma3, AutoModelForCausalLM), (llava, AutoModelForImageTextToText)], ids=["gemma3", "llava"]
)


def loaded(path, auto):
    return auto.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def adapter_of_peft(base, path, auto, targets=("q_proj", "down_proj")):
    """Save an adapter as PEFT trains one; return the logits of the adapted model."""
    torch.manual_seed(2)
    expression = rf".*language_model.*\.({'|'.join(targets)})" if auto else list(targets)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=expression, init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(loaded(base, auto or AutoModelForCausalLM), config).eval()
    model.save_pretrained(path)
    return logits(model)


@PICTURES
def test_an_adapter_of_peft_is_injected_and_extracted(tmp_path, config, auto):
    base = checkpoint(tmp_path / "base", config())
    expected = adapter_of_peft(base, tmp_path / "adapter", auto)
    assert (expected - logits(loaded(base, auto))).abs().max() > 1e-3
    inject(base, tmp_path / "adapter", tmp_path / "grafted")
    torch.testing.assert_close(logits(loaded(tmp_path / "grafted", auto)), expected, rtol=0, atol=1e-5)
    skill = extract(tmp_path / "adapter", base, tmp_path / "skill")
    assert skill.form == "lowrank"
    assert set(skill.names) <= read_layout(base).tensors.keys()
    inject(base, tmp_path / "skill", tmp_path / "again")
    torch.testing.assert_close(logits(loaded(tmp_path / "again", auto)), expected, rtol=0, atol=1e-5)


@PICTURES
def test_a_skill_is_an_adapter_that_peft_loads(tmp_path, config, auto):
    base = checkpoint(tmp_path / "base", config())
    expected = adapter_of_peft(base, tmp_path / "adapter", auto)
    extract(tmp_path / "adapter", base, tmp_path / "skill")
    report = convert_to_peft(tmp_path / "skill", tmp_path / "converted")
    assert report["exact"]
    model = PeftModel.from_pretrained(loaded(base, auto), tmp_path / "converted").eval()
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_rl_with_lora_keeps_its_factors(tmp_path):
    """A checkpoint with `adapter/` beside the weights, as an rl stage leaves it."""
    from skillgraft.adapters.lora import LoraAdapter, save_trained
    from skillgraft.models.loading import load_model
    from tests.tiny import tiny_tokenizer

    base = checkpoint(tmp_path / "base", gemma3())
    adapter = LoraAdapter({"target_modules": r".*language_model.*\.(q_proj|up_proj)"})
    model = load_model(base)
    model = get_peft_model(model, adapter.apply(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter += 0.1
    (tmp_path / "rl").mkdir()
    save_trained(model, base, tmp_path / "rl", tiny_tokenizer(), adapter)
    skill = extract(tmp_path / "rl", base, tmp_path / "skill")
    assert skill.form == "lowrank"
    assert skill.manifest.remarks == []
    before, after = weights(base), weights(tmp_path / "rl")
    for name in skill.names:
        torch.testing.assert_close(skill.delta(name), after[name] - before[name], rtol=0, atol=1e-5)


def test_a_skill_changes_the_weights_in_memory(tmp_path):
    """`chat --skill`, `tune` and `single_passage` write into the loaded model: the same logits as on disk."""
    from skillgraft.chat.commands import Settings
    from skillgraft.chat.models import ChatModel
    from skillgraft.chat.plan import plan_chat

    base = checkpoint(tmp_path / "base", gemma3())
    adapter_of_peft(base, tmp_path / "adapter", AutoModelForCausalLM)
    extract(tmp_path / "adapter", base, tmp_path / "skill")
    inject(base, tmp_path / "skill", tmp_path / "grafted", scale=2.0)
    [spec] = plan_chat([], str(base), [(str(tmp_path / "skill"), 1.0)])
    chat = ChatModel(spec)
    chat.inject(2.0)
    expected = weights(tmp_path / "grafted")
    rename = names_of_checkpoint(base)
    held = chat._model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(held[rename(name)], tensor.to(held[rename(name)].dtype)), name
    assert chat.answer("Who?", Settings(tokens=2), seed=0).text is not None


@pytest.mark.train
def test_single_passage_on_gemma_3(tmp_path):
    from skillgraft import run
    from tests.field.bases import recipe_on

    base = checkpoint(tmp_path / "base", gemma3())
    stage = {
        "kind": "single_passage",
        "from": "base",
        "documents": "data",
        "questions": "data/questions.jsonl",
        "limit_documents": 2,
        "max_new_tokens": 3,
        "adapt": {"kind": "lora", "r": 2, "target_modules": r".*language_model.*\.q_proj"},
        "trainer": {"max_steps": 1, "per_device_train_batch_size": 1},
    }
    assert base.exists()
    result = run(recipe_on(tmp_path, passages=stage), runs=tmp_path / "runs")
    assert {row["model"] for row in result.evaluations[0]["rows"]} >= {"passages/start", "passages/sft"}


@pytest.mark.parametrize("config", [mixtral, deepseek_v3])
def test_single_passage_on_experts_is_refused_when_planned(tmp_path, config):
    from tests.field.bases import planned, recipe_on

    checkpoint(tmp_path / "base", config())
    stage = {"kind": "single_passage", "from": "base", "documents": "data", "questions": "data/questions.jsonl"}
    with pytest.raises(RecipeError, match=r"stacks experts that the checkpoint stores one by one.*target_modules"):
        planned(recipe_on(tmp_path, passages={**stage, "adapt": {"kind": "lora"}}))
    planned(recipe_on(tmp_path, passages={**stage, "adapt": {"kind": "lora", "target_modules": ["o_proj"]}}))


def test_names_of_stored_tensors():
    rename = names_of_type("gemma3")
    stored = "language_model.model.layers.3.mlp.up_proj.weight"
    assert rename(stored) == "model.language_model.layers.3.mlp.up_proj.weight"
    assert names_of_type("llama")("model.layers.0.mlp.up_proj.weight") == "model.layers.0.mlp.up_proj.weight"
    assert names_of_type("never-heard-of")("a.b") == "a.b"
    assert names_of_type("mixtral")("model.layers.0.block_sparse_moe.experts.1.w2.weight") is None
    assert names_of_type("mixtral")("model.layers.0.block_sparse_moe.gate.weight") == "model.layers.0.mlp.gate.weight"


@pytest.mark.parametrize("config", [gemma3, llava, mixtral, deepseek_v3])
def test_every_name_is_the_loaded_models(tmp_path, config):
    base = checkpoint(tmp_path / "base", config())
    auto = AutoModelForImageTextToText if config is llava else AutoModelForCausalLM
    held = loaded(base, auto).state_dict()
    stored = load_file(base / "model.safetensors")
    pairs = stored_names(base, stored)
    for in_memory, name in pairs.items():
        assert torch.equal(held[in_memory], stored[name]), name
    stacked = set(stored) - set(pairs.values())
    assert all("experts" in name for name in stacked)
    assert bool(stacked) == (config in (mixtral, deepseek_v3))


def test_a_stacked_tensor_cannot_be_changed_in_memory(tmp_path):
    base = checkpoint(tmp_path / "base", mixtral())
    with pytest.raises(CompatibilityError, match="is stacked with others when the model is loaded"):
        check_one_to_one(base, read_layout(base).tensors)
    check_one_to_one(tiny_checkpoint(tmp_path / "llama"), read_layout(tmp_path / "llama").tensors)


def test_the_gate_of_mixtral_is_converted_under_its_name_in_memory(tmp_path):
    """The gate is one matrix under another name; experts are stacked, and left out by name."""
    base = checkpoint(tmp_path / "base", mixtral())
    tuned = checkpoint(tmp_path / "tuned", mixtral())
    tensors = load_file(tuned / "model.safetensors")
    torch.manual_seed(3)
    for name, tensor in tensors.items():
        if name.endswith(("gate.weight", "w2.weight")):
            tensors[name] = tensor + torch.outer(torch.randn(len(tensor)), torch.randn(tensor.shape[1]))
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    extract(tuned, base, tmp_path / "skill")
    with pytest.raises(CompatibilityError, match="one of the experts that Transformers stacks"):
        convert_to_peft(tmp_path / "skill", tmp_path / "adapter", rank=1)
    convert_to_peft(tmp_path / "skill", tmp_path / "adapter", rank=1, drop=True)
    assert {name.split(".lora_")[0] for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors")} == {
        f"base_model.model.model.layers.{layer}.mlp.gate" for layer in range(2)
    }
    deltas = read_adapter(tmp_path / "adapter", read_layout(base)).deltas
    assert set(deltas) == {f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in range(2)}


def test_plain_models_load_no_table(tmp_path, monkeypatch):
    from skillgraft.checkpoint import weight_names

    base = tiny_checkpoint(tmp_path / "base")
    adapter_of_peft(base, tmp_path / "adapter", None)
    monkeypatch.setattr(weight_names, "stored_names", lambda *_: pytest.fail("looked up"))
    deltas = read_adapter(tmp_path / "adapter", read_layout(base)).deltas
    assert deltas.keys() <= read_layout(base).tensors.keys()


def test_models_of_two_dtypes_leave_a_remark(tmp_path):
    """RL saved in bf16 over an fp32 SFT model: the difference holds the rounding of all tensors."""
    base = tiny_checkpoint(tmp_path / "base")
    rl = tiny_checkpoint(tmp_path / "rl")
    tensors = load_file(rl / "model.safetensors")
    changed = "model.layers.0.mlp.up_proj.weight"
    tensors[changed] += 0.01
    save_file({n: t.bfloat16() for n, t in tensors.items()}, rl / "model.safetensors", metadata={"format": "pt"})
    skill = extract(rl, base, tmp_path / "skill")
    [remark] = skill.manifest.remarks
    assert remark.startswith("20 of 20 tensors are F32 in the SFT model and BF16 in the RL model")
    assert load_skill(tmp_path / "skill").manifest.remarks == [remark]
    from typer.testing import CliRunner

    from skillgraft.cli.app import app

    shown = CliRunner().invoke(app, ["skill", "show", str(tmp_path / "skill")])
    assert "remark: 20 of 20 tensors" in shown.output
    facts = json.loads(CliRunner().invoke(app, ["skill", "show", str(tmp_path / "skill"), "--json"]).stdout)
    assert facts["remarks"] == [remark]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_one_dtype_leave_none(tmp_path, dtype):
    base = tiny_checkpoint(tmp_path / "base", dtype=dtype)
    rl = tiny_checkpoint(tmp_path / "rl", seed=1, dtype=dtype)
    assert extract(rl, base, tmp_path / "skill").manifest.remarks == []
