"""λ by pattern of tensor names: per layer, per kind of module."""

import pytest
import torch

from skillgraft.arithmetic import extract, inject
from skillgraft.checkpoint import read_provenance
from skillgraft.errors import CheckpointError, RecipeError
from tests.tiny import edit_json, weights

SCALES = {"model.layers.0.mlp.*": 0, "model.layers.0.*": 0.25, "*.norm.weight": -1, "default": 2}


def expected_scale(name):
    if name.startswith("model.layers.0.mlp."):
        return 0
    return 0.25 if name.startswith("model.layers.0.") else -1 if name == "model.norm.weight" else 2


def held(directory):
    return read_provenance(directory)["made_by"]["balance"]["held"]


def same(one, two):
    one, two = weights(one), weights(two)
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_each_tensor_gets_the_number_of_its_first_pattern_times_scale(folder, tmp_path, scale):
    report = inject(
        folder / "float32", folder / "a", tmp_path / "out", scale=scale, scales=SCALES, dtype="float64", threads=1
    )
    target, made = weights(folder / "float32"), weights(tmp_path / "out")
    rl, sft = weights(folder / "rl-a"), weights(folder / "sft")
    for name in target:
        delta = (rl[name] - sft[name]).double() * expected_scale(name)
        torch.testing.assert_close(made[name], target[name].double() + scale * delta, rtol=0, atol=1e-15)
        norm = report["tensors"].get(name, {"norm": 0.0})["norm"]  # what is not changed is not in the report
        assert norm == pytest.approx(abs(scale) * delta.norm().item(), rel=1e-9)
    assert read_provenance(tmp_path / "out")["made_by"]["scales"] == [list(pair) for pair in SCALES.items()]


def test_one_pattern_for_all_is_one_scale(folder, tmp_path):
    inject(folder / "float32", folder / "a", tmp_path / "one", scale=0.5)
    inject(folder / "float32", folder / "a", tmp_path / "two", scales={"*": 0.5})
    inject(folder / "float32", folder / "a", tmp_path / "three", scales={"default": 1}, scale=0.5)
    inject(folder / "float32", [(folder / "a", 0.5)], tmp_path / "four", scales={"*": 1})
    assert same(tmp_path / "one", tmp_path / "four")
    assert same(tmp_path / "one", tmp_path / "two")
    assert same(tmp_path / "one", tmp_path / "three")


def test_it_is_taken_out_again_by_the_same_patterns_alone(folder, tmp_path):
    target = folder / "float32"
    inject(target, folder / "a", tmp_path / "grafted", scales=SCALES)
    assert held(tmp_path / "grafted")["scales"] == [list(pair) for pair in SCALES.items()]
    report = inject(tmp_path / "grafted", folder / "a", tmp_path / "back", scales=SCALES, scale=-1)
    assert report["removal"]["exact"] is True
    assert same(tmp_path / "back", target)
    plain = inject(tmp_path / "grafted", folder / "a", tmp_path / "plain", scale=-1)
    assert "removal" not in plain  # another vector than what went in: nothing of it is taken out
    swapped = dict(reversed(SCALES.items()))
    assert "removal" not in inject(tmp_path / "grafted", folder / "a", tmp_path / "other", scales=swapped, scale=-1)


def test_half_of_it_leaves_half_of_it(folder, tmp_path):
    inject(folder / "float32", folder / "a", tmp_path / "grafted", scales=SCALES)
    report = inject(tmp_path / "grafted", folder / "a", tmp_path / "half", scales=SCALES, scale=-0.5)
    assert report["removal"]["left"] == {"a": 0.5}
    inject(folder / "float32", folder / "a", tmp_path / "expected", scales=SCALES, scale=0.5)
    one, two = weights(tmp_path / "half"), weights(tmp_path / "expected")
    assert all(torch.allclose(tensor, two[name], rtol=0, atol=3e-7) for name, tensor in one.items())


def test_a_damaged_skill_is_noticed_under_every_scale(folder, tmp_path):
    skill = extract(folder / "rl-a", folder / "sft", tmp_path / "skill")
    norms = {name: skill.norm(name) for name in skill.names}
    name = "model.layers.1.mlp.up_proj.weight"
    import json

    manifest = json.loads((tmp_path / "skill/skill.json").read_text())
    text = json.dumps(manifest).replace(json.dumps(norms[name]), json.dumps(norms[name] * 1.1))
    assert text != json.dumps(manifest)
    edit_json(tmp_path / "skill/skill.json", **json.loads(text))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj.*the skill is damaged"):
        inject(folder / "float32", tmp_path / "skill", tmp_path / "out", scales=SCALES)
    inject(folder / "float32", tmp_path / "skill", tmp_path / "out", scales={name: 0})  # what is not added is not read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": {"model.layer.0.*": 1}}, r"^scales: 'model\.layer\.0\.\*' matches none of the operand's"),
        ({"scales": {"*": float("nan")}}, r"scale is nan, expected a finite number"),
        ({"scales": {}}, "scales is empty, expected λ by pattern"),
        ({"scales": {"*": 1}, "method": "ties"}, "scales: λ by pattern is for one skill"),
    ],
)
def test_what_is_refused(folder, tmp_path, arguments, message):
    with pytest.raises(RecipeError, match=message):
        inject(folder / "float32", folder / "a", tmp_path / "out", **arguments)
    with pytest.raises(RecipeError, match="for one skill"):
        inject(folder / "float32", [(folder / "a", 1.0), (folder / "b", 1.0)], tmp_path / "out", scales={"*": 1})
    assert not (tmp_path / "out").exists()
