"""Settings of `adapt:` by PEFT's own names: what is saved is what was trained, or the plan refuses it."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from skillgraft.adapters.lora import LoraAdapter, empty_model, save_trained
from skillgraft.adapters.peft_file import REFUSED
from skillgraft.arithmetic import extract
from skillgraft.errors import RecipeError
from skillgraft.models.loading import load_model
from tests.field.bases import planned, recipe_on
from tests.field.families import checkpoint, deepseek_v3, mixtral, qwen3_moe
from tests.tiny import tiny_checkpoint, tiny_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 9]])
EXPERTS = pytest.mark.parametrize("config", [mixtral, qwen3_moe, deepseek_v3])


def trained(base, **adapt):
    """An adapted model whose factors are as after training, in memory."""
    adapter = LoraAdapter(adapt)
    model = load_model(base)
    model = get_peft_model(model, adapter.apply(model))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter) * 0.1
            assert parameter.requires_grad == ("lora_" in name or (name.endswith("bias") and "bias" in adapt))
    return adapter, model.eval()


RIGHT = {
    "all linear layers": {},
    "one by name": {"target_modules": ["q_proj"]},
    "an expression": {"target_modules": r".*layers\.1\.(self_attn\.[qk]_proj|mlp\.down_proj)"},
    "patterns of rank": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"v_proj": 5}, "r": 2},
    "rank-stabilized": {"use_rslora": True, "r": 4},
    "dropout": {"lora_dropout": 0.5},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    "what is left out": {"exclude_modules": ["down_proj"]},
    "gaussian": {"init_lora_weights": "gaussian"},
}


@pytest.mark.parametrize("adapt", RIGHT.values(), ids=RIGHT)
@pytest.mark.parametrize("tie", [True, False])
def test_what_is_saved_is_what_was_trained(tmp_path, adapt, tie):
    base = tiny_checkpoint(tmp_path / "base", tie=tie)
    adapter, model = trained(base, **adapt)
    with torch.no_grad():
        in_memory = model(input_ids=IDS).logits
        with adapter.merged(model):
            rolled_out = model(input_ids=IDS).logits
    (tmp_path / "out").mkdir()
    save_trained(model, base, tmp_path / "out", tiny_tokenizer(), adapter)
    with torch.no_grad():
        saved = load_model(tmp_path / "out").eval()(input_ids=IDS).logits
        start = load_model(base).eval()(input_ids=IDS).logits
    assert (in_memory - start).abs().max() > 2e-3
    torch.testing.assert_close(saved, in_memory, rtol=0, atol=1e-5)
    torch.testing.assert_close(rolled_out, in_memory, rtol=0, atol=1e-5)
    skill = extract(tmp_path / "out", base, tmp_path / "skill")
    assert skill.form == "lowrank"
    assert skill.manifest.remarks == []


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["q_proj", "lm_head"], ["q_proj", "embed_tokens"]])
def test_tied_matrices_are_no_targets(tmp_path, targets):
    base = tiny_checkpoint(tmp_path / "base")
    with pytest.raises(RecipeError, match=r"is one matrix with .* \(tied weights\)"):
        LoraAdapter({"target_modules": targets}).check(empty_model(base))
    for stage in ("sft", "rl"):
        adapt = {"kind": "lora", "target_modules": targets}
        with pytest.raises(RecipeError, match="tied weights"):
            planned(recipe_on(tmp_path, **{stage: {"from": "base", "adapt": adapt}}))


@pytest.mark.parametrize("stage", ["sft", "rl"])
@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"], "lm_head"])
def test_the_head_is_no_target(tmp_path, stage, targets):
    tiny_checkpoint(tmp_path / "base", tie=False)
    adapt = {"kind": "lora", "target_modules": targets}
    with pytest.raises(RecipeError, match="the output head is named, whose factors would never be trained"):
        planned(recipe_on(tmp_path, **{stage: {"from": "base", "adapt": adapt}}))


def test_an_untied_embedding_is_saved_as_trained(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", tie=False)
    adapter, model = trained(base, target_modules=["embed_tokens", "q_proj"])
    (tmp_path / "out").mkdir()
    save_trained(model, base, tmp_path / "out", tiny_tokenizer(), adapter)
    with torch.no_grad():
        in_memory, saved = (each(input_ids=IDS).logits for each in (model, load_model(tmp_path / "out").eval()))
    torch.testing.assert_close(saved, in_memory, rtol=0, atol=1e-5)
    [remark] = extract(tmp_path / "out", base, tmp_path / "skill").manifest.remarks
    assert "stored by its weights, not as the factors that RL trained" in remark


VALUES = {
    "trainable_token_indices": [3, 4],
    "layer_replication": [[0, 2], [1, 2]],
    "modules_to_save": ["lm_head"],
    "target_parameters": ["mlp.gate_proj.weight"],
}


@pytest.mark.parametrize("key", REFUSED)
def test_updates_that_are_no_product_are_refused_when_planned(tmp_path, key):
    adapt = {"kind": "lora", key: VALUES.get(key, True)}
    with pytest.raises(RecipeError, match=f"adapt: {key} is not supported"):
        planned(recipe_on(tmp_path, rl={"from": "base", "adapt": adapt}))


@EXPERTS
def test_experts_roll_out_as_they_are_trained_and_saved(tmp_path, config):
    """PEFT adapts stacked experts by a parameter, not by a module's matrix."""
    base = checkpoint(tmp_path / "base", config())
    adapter, model = trained(base)
    with torch.no_grad():
        in_memory = model(input_ids=IDS).logits
        with adapter.merged(model):
            rolled_out = model(input_ids=IDS).logits
        after = model(input_ids=IDS).logits
    (tmp_path / "out").mkdir()
    save_trained(model, base, tmp_path / "out", tiny_tokenizer(), adapter)
    with torch.no_grad():
        saved = load_model(tmp_path / "out").eval()(input_ids=IDS).logits
        start = load_model(base).eval()(input_ids=IDS).logits
    assert (in_memory - start).abs().max() > 0.02
    torch.testing.assert_close(saved, in_memory, rtol=0, atol=1e-4)
    torch.testing.assert_close(rolled_out, in_memory, rtol=0, atol=1e-4)
    torch.testing.assert_close(after, in_memory, rtol=0, atol=0)


@EXPERTS
def test_a_skill_of_experts_is_their_weights_difference(tmp_path, config):
    """The factors of stacked experts are of no stored matrix: the skill is exact by its weights, and says so."""
    from tests.tiny import weights

    base = checkpoint(tmp_path / "base", config())
    adapter, model = trained(base)
    (tmp_path / "out").mkdir()
    save_trained(model, base, tmp_path / "out", tiny_tokenizer(), adapter)
    skill = extract(tmp_path / "out", base, tmp_path / "skill")
    before, after = weights(base), weights(tmp_path / "out")
    for name in skill.names:
        torch.testing.assert_close(skill.delta(name), after[name] - before[name], rtol=0, atol=1e-7)
    assert any("experts" in name for name in skill.names)
    assert "stored by its weights" in skill.manifest.remarks[0]


@pytest.mark.train
@EXPERTS
def test_a_step_of_rl_on_experts(tmp_path, config):
    from skillgraft.data.tasks import Question
    from skillgraft.train.rl import train_rl
    from tests.tiny import weights

    base = checkpoint(tmp_path / "base", config())
    (tmp_path / "out").mkdir()
    (tmp_path / "work").mkdir()
    train_rl(
        base,
        tmp_path / "out",
        tmp_path / "work",
        tasks=[Question("d", "When?", ("x",)), Question("d", "Who?", ("y",))],
        reward={"tests.domains.own_reward.vowels": 1.0},
        trainer={"max_steps": 1, "per_device_train_batch_size": 8, "max_completion_length": 4, "warmup_steps": 0},
        adapter=LoraAdapter({"r": 2}),
    )
    before, after = weights(base), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_of_peft_with_experts_is_refused_in_true_words(tmp_path):
    base = checkpoint(tmp_path / "base", mixtral())
    model = get_peft_model(load_model(base), LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(Exception, match=r"target_parameters is .*: it adapts parameters outside linear layers"):
        extract(tmp_path / "adapter", base, tmp_path / "skill")


@pytest.mark.parametrize(
    ("adapt", "says"),
    [
        ({"r": 10**9}, r"the rank 1000000000 is more than any matrix of the model has rows or columns \(64\)"),
        ({"rank_pattern": {"q_proj": 10**9}}, "the rank 1000000000 is more than"),
        ({"rank_pattern": {"q_proj": 0}}, "the pattern 'q_proj' has 0, expected a number above 0"),
        ({"rank_pattern": {"q_proj": "4"}}, "the pattern 'q_proj' has '4'"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "the pattern 'q_proj' has nan"),
        ({"alpha_pattern": {"q_proj": -1}}, "the pattern 'q_proj' has -1"),
    ],
)
def test_ranks_and_scalings_out_of_range(tmp_path, adapt, says):
    with pytest.raises(RecipeError, match=says):
        planned(recipe_on(tmp_path, sft={"from": "base", "adapt": {"kind": "lora", **adapt}}))
