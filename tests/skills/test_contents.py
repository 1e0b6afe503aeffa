"""Contents that merging would refuse are found by looking, without a target."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillgraft.arithmetic import extract
from skillgraft.compression import pack
from skillgraft.errors import CompatibilityError
from skillgraft.skills import load_skill
from skillgraft.skills.contents import content_problem, contents_finding
from tests.tiny import tiny_finetune

NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def dense(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contents")
    return extract(tiny_finetune(tiny, folder / "rl"), tiny, folder / "skill")


def damaged(skill, key, value):
    """Put `value` into one place of a stored tensor."""
    tensors = load_file(skill.weights_file)
    tensors[key].view(-1)[-1] = value
    save_file(tensors, skill.weights_file)
    return load_skill(skill.path)


@pytest.mark.parametrize(
    ("form", "settings", "key"),
    [
        ("dense", {}, ""),
        ("dense", {"dtype": "bfloat16"}, ""),
        ("lowrank", {"rank": 2}, ".lowrank_a"),
        ("lowrank", {"rank": 2, "dtype": "float32"}, ".lowrank_b"),
        ("mask", {"density": 0.3}, ".sparse_values"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(dense, tmp_path, form, settings, key, value):
    packed = pack(dense, tmp_path / "packed", form, **settings)
    assert contents_finding(packed) is None
    packed = damaged(packed, NAME + key, value)
    finding = contents_finding(packed)
    assert (finding.level, finding.about) == ("refused", "contents")
    assert f"the delta of '{NAME}' holds 1 numbers that are NaN or infinite" in finding.message
    for number, (again, how) in enumerate([("lowrank", {"rank": 1}), ("lowrank", {"energy": 0.5}), ("sparse", {})]):
        with pytest.raises(CompatibilityError, match=r"up_proj\.weight' holds .*NaN or infini"):
            pack(packed, tmp_path / str(number), again, **how)
        assert not (tmp_path / str(number)).exists()


def test_factors_whose_product_overflows(dense, tmp_path):
    """10²⁰ · 10²⁰ is beyond float32; 10²⁰ times what is 0 elsewhere is not."""
    packed = pack(dense, tmp_path / "packed", "lowrank", rank=2, dtype="float32")
    keys = f"{NAME}.lowrank_a", f"{NAME}.lowrank_b"
    tensors = load_file(packed.weights_file)
    for key in keys:
        tensors[key] = torch.full_like(tensors[key], 1e20)
    save_file(tensors, packed.weights_file)
    assert content_problem(load_skill(packed.path), NAME).endswith("overflows float32 when its factors are multiplied")
    with pytest.raises(CompatibilityError, match="holds NaN or infinity"):
        pack(packed.path, tmp_path / "again", "lowrank", rank=1)
    tensors[keys[0]][0], tensors[keys[1]][:, 1] = 0, 0
    save_file(tensors, packed.weights_file)
    assert content_problem(load_skill(packed.path), NAME) is None  # the bound is exceeded, the product is 0
