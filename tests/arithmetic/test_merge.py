"""Each method against a plain reference on whole tensors in fp64, written from the paper's definition."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from skillgraft.arithmetic import extract, inject, inject_scales, merge
from skillgraft.arithmetic import tiles as tiles_module
from skillgraft.arithmetic.methods import METHODS
from skillgraft.arithmetic.methods.dare import keep_mask
from skillgraft.arithmetic.methods.slerp import slerp_weights
from skillgraft.arithmetic.rounding import round_once
from skillgraft.checkpoint import read_layout, read_provenance
from skillgraft.errors import CompatibilityError, OutputExistsError, RecipeError
from tests.tiny import edit_json, split_into_shards, tiny_checkpoint, tiny_finetune, weights

NORM = "model.norm.weight"


def run(family, out, method, operands, parameters=None, **more):
    operands = [{**o, **{k: str(family / o[k]) for k in ("model", "minus") if k in o}} for o in operands]
    data = {"method": method, "base": str(family / "base"), "operands": operands, "parameters": parameters or {}}
    return merge({**data, **more}, out)


def doubles(path):
    return {name: tensor.double() for name, tensor in weights(path).items()}


def rounded(tensor, dtype=torch.bfloat16):
    return round_once(tensor.reshape(-1), dtype).reshape(tensor.shape)


def check(out, reference, dtype=torch.bfloat16):
    made = weights(out)
    assert made.keys() == reference.keys()
    for name, exact in reference.items():
        assert torch.equal(made[name], rounded(exact, dtype)), name


def test_linear(family, tmp_path):
    run(family, tmp_path / "out", "linear", [{"model": "a", "weight": 0.3}, {"model": "b", "weight": 0.9}])
    a, b = doubles(family / "a"), doubles(family / "b")
    check(tmp_path / "out", {name: (a[name] * 0.3 + b[name] * 0.9) / (0.3 + 0.9) for name in a})
    given = [{"model": "a", "weight": 0.3}, {"model": "b", "weight": -0.2}]
    run(family, tmp_path / "raw", "linear", given, {"normalize": False})
    check(tmp_path / "raw", {name: a[name] * 0.3 + b[name] * -0.2 for name in a})


def test_task_arithmetic_and_any_signed_combination(family, tmp_path):
    given = [{"model": "a", "weight": 0.5}, {"model": "b", "minus": "c", "weight": -0.7}]
    report = run(family, tmp_path / "out", "task_arithmetic", given)
    base, a, b, c = (doubles(family / name) for name in ("base", "a", "b", "c"))
    change = {name: (a[name] - base[name]) * 0.5 + (b[name] - c[name]) * -0.7 for name in a}
    check(tmp_path / "out", {name: change[name] + base[name] for name in a})
    made = doubles(tmp_path / "out")
    lost = sum((made[n] - (base[n] + change[n])).square().sum().item() for n in a)
    wanted = sum(change[n].square().sum().item() for n in a)
    assert report["survived_rounding"] == pytest.approx(1 - (lost / wanted) ** 0.5, rel=1e-12)


def test_weights_of_zero_give_the_base_byte_for_byte(family, tmp_path):
    base = shutil.copytree(family / "base", tmp_path / "base")
    tensors = weights(base)
    tensors[NORM][:2] = torch.tensor([-0.0, 0.0])
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    data = {"method": "task_arithmetic", "base": base, "operands": [{"model": family / "a", "weight": 0}]}
    merge(data, tmp_path / "out")
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor.view(torch.int16), tensors[name].view(torch.int16))


def reference_slerp(a, b, t):
    norm_a, norm_b = a.norm(), b.norm()
    cosine = (a * b).sum() / (norm_a * norm_b)
    if cosine > 0.9995:
        return (1 - t) * a + t * b
    angle = torch.arccos(cosine)
    return torch.sin((1 - t) * angle) / torch.sin(angle) * a + torch.sin(t * angle) / torch.sin(angle) * b


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(family, tmp_path, t):
    tiny_checkpoint(tmp_path / "far", seed=9, dtype=torch.float32)
    shutil.copytree(family / "a", tmp_path / "near")
    given = [{"model": tmp_path / "near"}, {"model": tmp_path / "far"}]
    base = tmp_path / "near"
    merge({"method": "slerp", "base": base, "operands": given, "parameters": {"t": t}}, tmp_path / "out")
    near, far = doubles(tmp_path / "near"), doubles(tmp_path / "far")
    made = doubles(tmp_path / "out")
    for name in near:
        expected = reference_slerp(near[name], far[name], t)
        assert torch.equal(made[name].bfloat16(), rounded(expected)) or (made[name] - expected).abs().max() < 2e-4
    if t == 0:
        assert torch.equal(made[NORM], near[NORM])


def test_slerp_keeps_the_length_halfway_between_almost_opposite_tensors():
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([-1.0, 1e-3], dtype=torch.float64) / (1 + 1e-6) ** 0.5
    one, other = slerp_weights(0.5, (a @ b).item(), 1.0, 1.0)
    assert (one * a + other * b).norm().item() == pytest.approx(1.0, rel=1e-6)


def test_slerp_between_opposite_tensors_is_refused(family, tmp_path):
    shutil.copytree(family / "a", tmp_path / "minus")
    negative = {name: -tensor for name, tensor in weights(tmp_path / "minus").items()}
    save_file(negative, tmp_path / "minus" / "model.safetensors", metadata={"format": "pt"})
    given = [{"model": family / "a"}, {"model": tmp_path / "minus"}]
    with pytest.raises(CompatibilityError, match="are opposite, so that no path between them is the shortest"):
        merge({"method": "slerp", "base": family / "a", "operands": given}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def reference_ties(vectors, weights_, density, normalize, scale, population=None):
    """Trim by the k-th largest magnitude, elect by the sign of the weighted sum, average those that agree."""
    trimmed = []
    for index, vector in enumerate(vectors):
        crowd = vector.abs().float().reshape(-1) if population is None else population[index]
        k = max(1, math.floor(density * crowd.numel()))
        threshold = crowd.sort(descending=True).values[k - 1]
        trimmed.append(torch.where(vector.abs().float() >= threshold, vector, torch.zeros(())))
    weighted = [vector * weight for vector, weight in zip(trimmed, weights_, strict=True)]
    total = sum(weighted)
    sign = torch.where(total >= 0, 1.0, -1.0).double()
    agree = [torch.sign(vector) == sign for vector in weighted]
    merged = sum(torch.where(mask, vector, torch.zeros(())) for mask, vector in zip(agree, weighted, strict=True))
    if normalize:
        divisor = sum(mask.double() * weight for mask, weight in zip(agree, weights_, strict=True))
        merged = merged / torch.where(divisor.abs() < 1e-8, torch.ones(()).double(), divisor)
    return merged * scale


@pytest.mark.parametrize(
    ("scope", "normalize", "weights_", "scale"),
    [("tensor", True, (1, 1, 1), 1.0), ("model", True, (1, 1, 1), 0.7), ("tensor", False, (0.5, 1.5, -0.3), 1.0)],
)
def test_ties(family, tmp_path, scope, normalize, weights_, scale):
    given = [{"model": n, "weight": w} for n, w in zip("abc", weights_, strict=True)]
    parameters = {"density": 0.3, "scope": scope, "normalize": normalize, "scale": scale}
    run(family, tmp_path / "out", "ties", given, parameters)
    base, *models = (doubles(family / name) for name in ("base", "a", "b", "c"))
    crowd = [torch.cat([(m[n] - base[n]).abs().float().reshape(-1) for n in base]) for m in models]
    expected = {}
    for name in base:
        vectors = [model[name] - base[name] for model in models]
        population = crowd if scope == "model" else None
        expected[name] = base[name] + reference_ties(vectors, weights_, 0.3, normalize, scale, population)
    check(tmp_path / "out", expected)


def test_ties_by_hand(tmp_path):
    """Keep 2 of 4: (4, −3, ·, ·) and (−2, −5, ·, ·); signs of (2, −8): +, −; means 4 and −4."""
    base = tiny_checkpoint(tmp_path / "base", hidden_size=4, num_attention_heads=2, num_key_value_heads=1)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in weights(base).items()}
    for folder, values in (("base", [0, 0, 0, 0]), ("one", [4, -3, 1, 2]), ("two", [-2, -5, 1, 0])):
        if folder != "base":
            shutil.copytree(base, tmp_path / folder)
        changed = {**tensors, NORM: torch.tensor(values, dtype=torch.float32)}
        save_file(changed, tmp_path / folder / "model.safetensors", metadata={"format": "pt"})
    given = [{"model": tmp_path / "one"}, {"model": tmp_path / "two"}]
    parameters = {"density": 0.5, "scope": "tensor"}
    merge({"method": "ties", "base": base, "operands": given, "parameters": parameters}, tmp_path / "out")
    assert weights(tmp_path / "out")[NORM].tolist() == [4.0, -4.0, 0.0, 0.0]


@pytest.mark.parametrize("method", ["dare", "dare_ties"])
def test_dare(family, tmp_path, method):
    given = [{"model": "a", "weight": 0.6}, {"model": "b", "weight": 0.4}]
    run(family, tmp_path / "out", method, given, {"density": 0.4, "seed": 7})
    base, a, b = (doubles(family / name) for name in ("base", "a", "b"))
    expected = {}
    for name in base:
        vectors = []
        for number, model in enumerate((a, b)):
            kept = keep_mask(7, number, name, 0, base[name].numel(), 0.4).reshape(base[name].shape)
            vectors.append((model[name] - base[name]) * torch.from_numpy(kept) / 0.4)
        if method == "dare":
            expected[name] = base[name] + (vectors[0] * 0.6 + vectors[1] * 0.4)
        else:
            weighted = [vectors[0] * 0.6, vectors[1] * 0.4]
            sign = torch.where(sum(weighted) >= 0, 1.0, -1.0).double()
            agree = [torch.sign(vector) == sign for vector in weighted]
            divisor = agree[0].double() * 0.6 + agree[1].double() * 0.4
            merged = sum(torch.where(m, v, torch.zeros(())) for m, v in zip(agree, weighted, strict=True))
            expected[name] = base[name] + merged / torch.where(divisor < 1e-8, torch.ones(()).double(), divisor)
    check(tmp_path / "out", expected)


def test_the_mask_is_a_function_of_the_element(family):
    whole = keep_mask(3, 0, "x", 0, 100_000, 0.3)
    assert whole.mean() == pytest.approx(0.3, abs=0.006)
    for start, count in ((0, 1), (5, 11), (4096, 70_000), (99_999, 1)):
        assert (keep_mask(3, 0, "x", start, count, 0.3) == whole[start : start + count]).all()
    for other in (
        keep_mask(4, 0, "x", 0, 1000, 0.3),
        keep_mask(3, 1, "x", 0, 1000, 0.3),
        keep_mask(3, 0, "y", 0, 1000, 0.3),
    ):
        assert 300 < (other != whole[:1000]).sum() < 540  # independent masks differ in 2·0.3·0.7 of the elements
    assert keep_mask(3, 0, "x", 0, 9, 1.0).all()
    expected = np.random.Philox(key=1).random_raw(3)  # the generator is numpy's own
    assert (np.random.Philox(key=1, counter=[0, 0, 0, 0]).random_raw(3) == expected).all()


def test_model_stock(family, tmp_path):
    run(family, tmp_path / "out", "model_stock", [{"model": "a"}, {"model": "b"}, {"model": "c"}])
    base, *models = (doubles(family / name) for name in ("base", "a", "b", "c"))
    made = doubles(tmp_path / "out")
    for name in base:
        vectors = [model[name] - base[name] for model in models]
        cosines = [(v * w).sum() / (v.norm() * w.norm()) for v, w in itertools.combinations(vectors, 2)]
        cosine = sum(cosines) / 3
        t = 3 * cosine / (1 + 2 * cosine)
        expected = t * (sum(model[name] for model in models) / 3) + (1 - t) * base[name]
        close = (made[name] - expected).abs() <= 2.0**-8 * expected.abs() + 1e-9
        assert close.all()
        assert (made[name].bfloat16() == rounded(expected)).float().mean() > 0.999


@pytest.fixture
def adapter(family, tmp_path):
    """A trained-looking PEFT adapter on the base."""
    model = AutoModelForCausalLM.from_pretrained(family / "base", dtype=torch.float32)
    torch.manual_seed(0)
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=["q_proj", "down_proj"]))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    peft.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def adapter_deltas(path):
    factors = load_file(path / "adapter_model.safetensors")
    names = {key.removeprefix("base_model.model.").split(".lora_")[0] for key in factors}
    return {
        f"{name}.weight": 3.0
        * factors[f"base_model.model.{name}.lora_B.weight"].double()
        @ factors[f"base_model.model.{name}.lora_A.weight"].double()
        for name in names
    }


def test_an_adapter_stands_where_a_checkpoint_can(family, adapter, tmp_path):
    base, a = doubles(family / "base"), doubles(family / "a")
    deltas = adapter_deltas(adapter)
    assert len(deltas) == 4
    zero = torch.zeros((), dtype=torch.float64)
    run(family, tmp_path / "v", "task_arithmetic", [{"adapter": adapter, "weight": 0.5}, {"model": "a"}])
    check(
        tmp_path / "v",
        {name: base[name] + (deltas.get(name, zero) * 0.5 + (a[name] - base[name])) for name in base},
    )
    given = [{"model": "base", "adapter": adapter, "weight": 0.25}, {"model": "a", "weight": 0.75}]
    run(family, tmp_path / "m", "linear", given)
    made = weights(tmp_path / "m")
    for name in base:
        exact = (base[name] + deltas.get(name, zero)) * 0.25 + a[name] * 0.75
        assert torch.equal(made[name], rounded(exact)), name
    untouched = run(family, tmp_path / "alone", "task_arithmetic", [{"model": "base", "adapter": adapter}])
    assert set(untouched["tensors"]) == set(deltas)  # base + BA − base is BA: the base's tensors keep their bytes
    inject(family / "base", adapter, tmp_path / "injected")
    for name, tensor in weights(tmp_path / "alone").items():
        assert torch.equal(tensor, rounded(base[name] + deltas.get(name, zero)))
        assert torch.equal(tensor, weights(tmp_path / "injected")[name])


def test_a_skill_is_an_operand(family, tmp_path):
    skill = extract(family / "b", family / "a", tmp_path / "skill")
    given = [{"skill": skill.path, "weight": 2.0}]
    run(family, tmp_path / "out", "task_arithmetic", given)
    inject(family / "base", skill, tmp_path / "injected", scale=2.0)
    one, other = weights(tmp_path / "out"), weights(tmp_path / "injected")
    assert all(torch.equal(one[name], other[name]) for name in one)


MODEL_METHODS = [method for method in METHODS if method not in ("copa", "instruction_residual")]  # have tests apart
SETTINGS = {"cabs": {"n": 3, "m": 8}, "breadcrumbs": {"beta": 0.05, "gamma": 0.3}}


@pytest.mark.parametrize("method", MODEL_METHODS)
def test_threads_shards_and_tiles_change_nothing(family, tmp_path, monkeypatch, method):
    given = [{"model": "a"}, {"model": "b"}]
    run(family, tmp_path / "one", method, given, SETTINGS.get(method))
    for name in ("base", "a", "b"):
        split_into_shards(family / name, tmp_path / "sharded" / name, shards={"base": 2, "a": 3, "b": 5}[name])
    data = {
        "method": method,
        "base": tmp_path / "sharded/base",
        "operands": [{"model": tmp_path / "sharded/a"}, {"model": tmp_path / "sharded/b"}],
        "parameters": SETTINGS.get(method, {}),
    }
    merge(data, tmp_path / "two", threads=5)
    if method not in ("slerp", "model_stock"):  # their sums are cut by the tile, which is a constant
        monkeypatch.setattr(tiles_module, "TILE_ELEMENTS", 777)
    merge(data, tmp_path / "three", threads=3)
    one = weights(tmp_path / "one")
    for other in ("two", "three"):
        assert all(torch.equal(one[name], tensor) for name, tensor in weights(tmp_path / other).items())
    assert (
        read_layout(tmp_path / "two").index["weight_map"] == read_layout(tmp_path / "sharded/base").index["weight_map"]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_input_dtype_is_exact(tmp_path, dtype):
    base = tiny_checkpoint(tmp_path / "base", dtype=dtype)
    one = tiny_finetune(base, tmp_path / "one", seed=1, size=0.05)
    two = tiny_finetune(base, tmp_path / "two", seed=2, size=0.05)
    given = [{"model": one, "weight": 0.3}, {"model": two, "minus": one, "weight": 1.7}]
    merge({"method": "task_arithmetic", "base": base, "operands": given}, tmp_path / "out")
    b, x, y = doubles(base), doubles(one), doubles(two)
    check(tmp_path / "out", {n: b[n] + ((x[n] - b[n]) * 0.3 + (y[n] - x[n]) * 1.7) for n in b}, dtype)


def test_a_sweep_is_the_single_runs(family, tmp_path):
    skill = extract(family / "b", family / "a", tmp_path / "skill")
    reports = inject_scales(family / "c", skill, tmp_path / "sweep", [0, 0.25, 1])
    assert list(reports) == ["scale-0", "scale-0.25", "scale-1"]
    for scale in (0, 0.25, 1):
        single = inject(family / "c", skill, tmp_path / f"single{scale}", scale=scale)
        swept = tmp_path / "sweep" / f"scale-{scale:g}"
        for file in ("model.safetensors", "config.json", "tokenizer.json"):
            assert (swept / file).read_bytes() == (tmp_path / f"single{scale}" / file).read_bytes()
        assert reports[swept.name]["survived_rounding"] == single["survived_rounding"]
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == sorted(reports)
    with pytest.raises(OutputExistsError, match="sweep exists already"):
        inject_scales(family / "c", skill, tmp_path / "sweep", [2, 1])
    assert list(inject_scales(family / "c", skill, tmp_path / "close", [0.1234567, 0.1234568, -0.0])) == [
        "scale-0.1234567",
        "scale-0.1234568",
        "scale-0",
    ]
    with pytest.raises(RecipeError, match="name one λ twice"):
        inject_scales(family / "c", skill, tmp_path / "x", [1, 1.0])


def test_a_padded_vocabulary_is_handled_and_said(tmp_path):
    target = tiny_checkpoint(tmp_path / "target", seed=1, tie=False, vocab_size=336)
    smaller = tiny_checkpoint(tmp_path / "smaller", seed=1, tie=False)
    tensors = {n: (t[:320] if t.shape[0] == 336 else t) + 0.25 for n, t in weights(target).items()}
    save_file(tensors, smaller / "model.safetensors", metadata={"format": "pt"})
    given = [{"model": smaller, "weight": 1.0}]
    report = merge({"method": "task_arithmetic", "base": target, "operands": given}, tmp_path / "out")
    assert any("padded to other numbers of rows" in remark for remark in report["remarks"])
    made, before = weights(tmp_path / "out"), weights(target)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert torch.equal(made[name][320:], before[name][320:])
        assert torch.equal(made[name][:320], tensors[name])
    larger = [{"model": target, "weight": 0.5}, {"model": smaller, "weight": 0.5}]
    merge({"method": "linear", "base": smaller, "operands": larger}, tmp_path / "small")
    assert weights(tmp_path / "small")["lm_head.weight"].shape == (320, 32)
    edit_json(smaller / "tokenizer.json", added_tokens=[{"id": 330, "content": "<new>"}])
    shutil.copyfile(smaller / "tokenizer.json", target / "tokenizer.json")
    with pytest.raises(CompatibilityError, match=r"has shape \[320, 32\] in .*smaller and \[336, 32\]"):
        merge({"method": "task_arithmetic", "base": target, "operands": given}, tmp_path / "no")


def test_provenance_says_what_was_merged(family, tmp_path):
    report = run(family, tmp_path / "out", "ties", [{"model": "a"}, {"model": "b", "weight": 0.5}], {"density": 0.5})
    found = read_provenance(tmp_path / "out")
    assert found["kind"] == "merge"
    assert found["made_by"]["method"] == "ties"
    assert found["made_by"]["parameters"] == {"density": 0.5, "scope": "model", "normalize": True, "scale": 1.0}
    assert found["made_by"]["operands"][1] == {"model": str(family / "b"), "weight": 0.5}
    assert found["made_by"]["survived_rounding"] == report["survived_rounding"]
    assert set(found["inputs"]) == {"base", "operand0.model", "operand1.model"}


def test_a_config_that_lies_about_the_dtype_is_put_right(family, tmp_path):
    base = tiny_checkpoint(tmp_path / "base")
    one = tiny_finetune(base, tmp_path / "one")
    edit_json(base / "config.json", dtype="bfloat16")
    report = merge({"method": "linear", "base": base, "operands": [{"model": one}]}, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "float32"
    assert any("config says bfloat16, its weights are float32" in remark for remark in report["remarks"])
