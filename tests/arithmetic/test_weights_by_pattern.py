"""A weight for each pattern of tensor names, in place of one for an operand."""

import json

import pytest
import torch
import yaml

from skillgraft.arithmetic import merge
from skillgraft.arithmetic.merge_recipe import parse_merge_recipe
from skillgraft.arithmetic.mergekit import mergekit_yaml
from skillgraft.arithmetic.plan import plan_merge
from skillgraft.errors import RecipeError
from tests.tiny import weights

LAYER0, LAYER1 = "model.layers.0.*", "model.layers.1.*"


def recipe(family, *operands, method="task_arithmetic", **more):
    return {"method": method, "base": family / "base", "operands": list(operands), **more}


def test_each_tensor_gets_the_weight_of_its_first_pattern(family, tmp_path):
    by_pattern = {"model.layers.0.mlp.*": 0, LAYER0: 0.25, "*.norm.weight": -1, "default": 2}
    merge(recipe(family, {"model": family / "a", "weights": by_pattern}, dtype="float64"), tmp_path / "out")
    base, tuned, made = weights(family / "base"), weights(family / "a"), weights(tmp_path / "out")
    for name in base:
        mlp = name.startswith("model.layers.0.mlp.")
        weight = 0 if mlp else 0.25 if name.startswith("model.layers.0.") else -1 if name == "model.norm.weight" else 2
        assert torch.equal(made[name], base[name].double() + weight * (tuned[name].double() - base[name].double()))
    settings = json.loads((tmp_path / "out/skillgraft.json").read_text())["made_by"]
    assert settings["operands"][0]["weights"] == by_pattern


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "dare_ties"])
def test_one_pattern_for_all_is_one_weight(family, tmp_path, method):
    other = {"model": str(family / "b"), "weight": 1.5}
    merge(recipe(family, {"model": family / "a", "weight": 0.5}, other, method=method), tmp_path / "one")
    merge(recipe(family, {"model": family / "a", "weights": {"*": 0.5}}, other, method=method), tmp_path / "two")
    merge(
        recipe(family, {"model": family / "a", "weights": {"default": 0.5}}, other, method=method), tmp_path / "three"
    )
    one = weights(tmp_path / "one")
    for name in ("two", "three"):
        assert all(torch.equal(tensor, one[key]) for key, tensor in weights(tmp_path / name).items())


def test_without_default_the_others_have_weight_one(family):
    plan = plan_merge(parse_merge_recipe(recipe(family, {"model": family / "a", "weights": {LAYER1: 0.5}})))
    found = {tensor.spec.name: tensor.operands[0].weight for tensor in plan.tensors}
    assert {weight for name, weight in found.items() if name.startswith("model.layers.1.")} == {0.5}
    assert {weight for name, weight in found.items() if not name.startswith("model.layers.1.")} == {1.0}


@pytest.mark.parametrize(
    ("operands", "method", "message"),
    [
        ([{"weights": {"model.layer.0.*": 1}}], "ties", r"operands\.0\.weights: 'model\.layer\.0\.\*' matches none of"),
        ([{"weights": {LAYER0: 1}, "weight": 1}], "ties", r"operands\.0 has weight and weights"),
        ([{"weights": {}}], "ties", r"operands\.0\.weights"),
        ([{"weights": {LAYER0: float("nan")}}], "ties", r"operands\.0\.weights.*nan.*finite"),
        ([{"weights": 0.5}], "ties", r"operands\.0\.weights is 0\.5"),
        ([{"weights": {LAYER0: 0.5}}, {}], "model_stock", r"model_stock takes no weights, got \[0\.5, 1\.0\]"),
        ([{"weights": {LAYER0: -1}}, {}], "linear", r"weights of 'model\.layers\.0\..*' \[-1\.0, 1\.0\] sum to 0"),
    ],
)
def test_what_is_refused(family, tmp_path, operands, method, message):
    given = [{"model": str(family / name), **operand} for name, operand in zip("ab", operands, strict=False)]
    with pytest.raises(RecipeError, match=message):
        merge(recipe(family, *given, method=method), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pattern_must_match_what_the_operand_changes(family, tmp_path):
    """A skill of attention alone has no tensor of the MLP, though the base has."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    from safetensors.torch import save_file

    module = "base_model.model.model.layers.0.self_attn.q_proj"
    factors = {f"{module}.lora_A.weight": torch.ones(1, 32), f"{module}.lora_B.weight": torch.ones(32, 1)}
    save_file(factors, adapter / "adapter_model.safetensors")
    with pytest.raises(
        RecipeError, match=r"'\*\.mlp\.\*' matches none of the operand's 1 tensors \(model\.layers\.0\."
    ):
        merge(recipe(family, {"adapter": adapter, "weights": {"*.mlp.*": 1}}), tmp_path / "out")


def test_there_is_no_mergekit_equivalent(family):
    given = parse_merge_recipe(
        yaml.safe_load(json.dumps(recipe(family, {"model": "a", "weights": {LAYER0: 1}}), default=str))
    )
    with pytest.raises(RecipeError, match=r"operands\.0: weights by pattern have no equivalent"):
        mergekit_yaml(given)
