"""CoPA on low-rank factors, and the two plain recipes: model ratatouille and the instruction residual."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skillgraft.arithmetic import extract, merge, merging
from skillgraft.arithmetic import tiles as tiles_module
from skillgraft.arithmetic.methods.copa import compensation, copa, prune
from skillgraft.arithmetic.torch_tiles import on_device
from skillgraft.checkpoint import fingerprint_checkpoint, write_provenance
from skillgraft.errors import CompatibilityError, RecipeError
from tests.tiny import tiny_checkpoint, tiny_finetune, weights

MODULES = {"model.layers.0.self_attn.q_proj": (32, 32), "model.layers.1.mlp.down_proj": (32, 64)}


def factors_of(seed, rank=4, modules=MODULES):
    rng = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn((rank, inside), generator=rng) / 9, torch.randn((outside, rank), generator=rng) / 9)
        for name, (outside, inside) in modules.items()
    }


def write_adapter(folder, factors, rank=4, alpha=6):
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    tensors = {
        f"base_model.model.{name}.lora_{side}.weight": factor.contiguous()
        for name, pair in factors.items()
        for side, factor in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "base")


def copa_merge(base, out, paths, lambdas=(1.0, 1.0), **parameters):
    operands = [
        {("skill" if (path / "skill.json").is_file() else "adapter"): path, "weight": weight}
        for path, weight in zip(paths, lambdas, strict=True)
    ]
    data = {"method": "copa", "base": base, "operands": operands, "parameters": parameters, "dtype": "float64"}
    merge(data, out)
    made, before = weights(out), weights(base)
    return {name: made[name] - before[name].double() for name in before}


def reference_prune(factor, density):
    order = factor.abs().flatten().sort().values
    least = order[max(int(len(order) * (1 - density)), 1) - 1]
    return torch.where(factor.abs() >= least, factor, torch.zeros((), dtype=torch.float64))


def reference_copa(pairs, lambdas, scalings, density=0.2, clamp=0.2, coefficient=2.0):
    """Each direction (row of A, column of B) by itself."""
    rank = pairs[0][0].shape[0]
    trimmed = [(reference_prune(a.double(), density), reference_prune(b.double(), density)) for a, b in pairs]
    scales = torch.zeros(len(pairs), rank, dtype=torch.float64)
    for task, ((a, _), (kept, _)) in enumerate(zip(pairs, trimmed, strict=True)):
        for j in range(rank):
            left = kept[j].abs().sum()
            scales[task, j] = a[j].double().abs().sum() / left if left > 0 else 0
        least = scales[task].sort().values[int(rank * (1 - clamp))]
        scales[task] = torch.where(scales[task] > 0, scales[task].clamp(min=least), scales[task])
    share = scales / scales.sum(0)
    merged_a = coefficient * sum(a for a, _ in trimmed)
    merged_b = torch.zeros_like(trimmed[0][1])
    for task, (_, b) in enumerate(trimmed):
        for j in range(rank):
            merged_b[:, j] += coefficient * share[task, j] * b[:, j] * scalings[task] * lambdas[task]
    return merged_b @ merged_a


@pytest.mark.parametrize("settings", [{}, {"density": 0.7, "clamp": 1.0, "coefficient": 1.0}, {"clamp": 0.5}])
def test_copa(base, tmp_path, settings):
    one, two = factors_of(1), factors_of(2)
    paths = [write_adapter(tmp_path / "one", one), write_adapter(tmp_path / "two", two, alpha=4)]
    change = copa_merge(base, tmp_path / "out", paths, (1.0, 0.5), **settings)
    for name, values in change.items():
        module = name.removesuffix(".weight")
        if module in MODULES:
            wanted = reference_copa([one[module], two[module]], (1.0, 0.5), (1.5, 1.0), **settings)
            assert torch.allclose(values, wanted, rtol=1e-10, atol=1e-14)
        else:
            assert not values.any()


def test_copa_by_hand():
    assert prune(np.array([[1.0, -4], [3, 2]]), 0.5).tolist() == [[0, -4], [3, 2]]  # the second smallest stays too
    a, kept = np.array([[1.0, 3], [2, 2], [1, 0]]), np.array([[0.0, 3], [0, 2], [0, 0]])
    assert compensation(a, kept, 1.0).tolist() == pytest.approx([4 / 3, 2, 0])
    assert compensation(a, kept, 0.5).tolist() == pytest.approx([4 / 3, 2, 0])  # quantile: the middle one of three
    one = (np.array([[1.0, 2.0]]), np.array([[3.0], [1.0]]))
    two = (np.array([[4.0, 0.0]]), np.array([[1.0], [5.0]]))
    merged_a, merged_b = copa([one, two], [1.0, 3.0], 1.0, 1.0, 0.5)
    assert merged_a.tolist() == [[2.5, 1.0]]
    assert merged_b.tolist() == [[0.5 * (3 + 3) / 2], [0.5 * (1 + 15) / 2]]


def test_copa_takes_skills_and_averages_what_they_store_whole(base, tmp_path):
    norm = "model.norm.weight"
    paths, whole = [], []
    for seed in (1, 2):
        sft = tiny_finetune(base, tmp_path / f"sft{seed}", seed=seed + 20)
        rl = shutil.copytree(sft, tmp_path / f"rl{seed}")
        pair = factors_of(seed)
        write_adapter(rl / "adapter", pair, alpha=4)
        tensors = weights(sft)
        for name, (a, b) in pair.items():
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + b @ a
        save_file(tensors, rl / "model.safetensors", metadata={"format": "pt"})
        paths.append(extract(rl / "adapter", sft, tmp_path / f"skill{seed}").path)
    change = copa_merge(base, tmp_path / "skills", paths)
    adapters = copa_merge(base, tmp_path / "adapters", [tmp_path / f"rl{seed}/adapter" for seed in (1, 2)])
    for name in change:
        assert torch.allclose(change[name], adapters[name], rtol=1e-6, atol=1e-9)
    for seed in (1, 2):
        moved = tiny_finetune(base, tmp_path / f"norm{seed}", seed=seed, size=0.1, names=[norm])
        paths.append(extract(moved, base, tmp_path / f"whole{seed}").path)
        whole.append(weights(moved)[norm].double() - weights(base)[norm].double())
    change = copa_merge(base, tmp_path / "norms", paths[2:], (1.0, 3.0))
    assert torch.allclose(change[norm], (whole[0] + 3 * whole[1]) / 2, rtol=1e-6)


def test_copa_does_not_depend_on_tiles_or_the_device(base, tmp_path, monkeypatch):
    paths = [write_adapter(tmp_path / name, factors_of(seed)) for seed, name in enumerate(("one", "two", "three"))]
    copa_merge(base, tmp_path / "a", paths, (1, 1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(tiles_module, "TILE_ELEMENTS", 77)
        copa_merge(base, tmp_path / "b", paths, (1, 1, 1))
    monkeypatch.setattr(merging, "compute_on", lambda name: on_device(torch.device(name)))
    copa_merge(base, tmp_path / "c", paths, (1, 1, 1))
    for other in "bc":
        assert all(torch.equal(weights(tmp_path / "a")[n], t) for n, t in weights(tmp_path / other).items())


def test_copa_refuses_what_is_not_one_set_of_factors(base, tmp_path):
    one = write_adapter(tmp_path / "one", factors_of(1))
    rank = write_adapter(tmp_path / "rank", factors_of(2, rank=2), rank=2)
    with pytest.raises(CompatibilityError, match="the operands have rank 4, rank 2; copa merges factors of one rank"):
        copa_merge(base, tmp_path / "out", [one, rank])
    fewer = write_adapter(tmp_path / "fewer", {k: v for k, v in factors_of(2).items() if "mlp" in k})
    with pytest.raises(
        CompatibilityError, match=r"operands.1 does not change 'model.layers.0.self_attn.q_proj.weight'"
    ):
        copa_merge(base, tmp_path / "out", [one, fewer])
    names = [f"{module}.weight" for module in MODULES]
    dense = extract(tiny_finetune(base, tmp_path / "ft", names=names), base, tmp_path / "dense").path
    with pytest.raises(CompatibilityError, match="the operands have rank 4, no factors; copa merges"):
        copa_merge(base, tmp_path / "out", [one, dense])
    assert not (tmp_path / "out").exists()


def test_mediator_knows_an_operand_that_is_silent_on_a_tensor(base, tmp_path):
    """The average counts it as zeros, and the first operand kept apart leaves the base's tensor."""
    adapter = write_adapter(tmp_path / "adapter", factors_of(1))
    model = tiny_finetune(base, tmp_path / "model", seed=1, size=0.1)
    operands = [{"adapter": adapter}, {"model": model, "weight": 3.0}]
    data = {"method": "mediator", "base": base, "operands": operands, "dtype": "float64"}
    for threshold, fallback in ((1.0, "first"), (0.0, "first")):
        parameters = {"threshold": threshold, "fallback": fallback}
        report = merge({**data, "parameters": parameters}, tmp_path / f"out{threshold}")
        calm = {layer["layer"]: layer["calm"] for layer in report["layers"]}
        assert set(calm.values()) == ({True} if threshold else {True, False})  # only one changes embedding and norm
        norm, before = "model.layers.0.input_layernorm.weight", weights(base)
        change = weights(tmp_path / f"out{threshold}")[norm] - before[norm].double()
        wanted = (weights(model)[norm].double() - before[norm].double()) * 3 / 4
        assert torch.allclose(change, wanted if threshold else wanted * 0, rtol=1e-12, atol=1e-15)


def test_ratatouille_is_the_average(base, tmp_path):
    models = [tiny_finetune(base, tmp_path / name, seed=seed, size=0.1) for seed, name in enumerate("abc", start=1)]
    operands = [{"model": model} for model in models]
    data = {"method": "ratatouille", "base": base, "operands": operands, "dtype": "float64"}
    report = merge(data, tmp_path / "out")
    assert "survived_rounding" not in report
    for name, made in weights(tmp_path / "out").items():
        assert torch.equal(made, sum(weights(model)[name].double() for model in models) / 3)
    weighted = [{"model": models[0], "weight": 3.0}, {"model": models[1], "weight": 1.0}]
    merge({**data, "operands": weighted}, tmp_path / "weighted")
    for name, made in weights(tmp_path / "weighted").items():
        assert torch.equal(made, (weights(models[0])[name].double() * 3 + weights(models[1])[name].double()) / 4)
    with pytest.raises(RecipeError, match=r"operands.1 is the same model as base; ratatouille averages several"):
        merge({**data, "operands": [operands[0], {"model": base}]}, tmp_path / "no")


def test_the_instruction_residual(base, tmp_path):
    """instruct − base on an update of that base; a base of another family is refused."""
    instruct = tiny_finetune(base, tmp_path / "instruct", seed=1)
    updated = tiny_finetune(base, tmp_path / "updated", seed=2)
    operand = {"model": instruct, "minus": base}
    data = {"method": "instruction_residual", "base": updated, "operands": [operand], "dtype": "float64"}
    report = merge(data, tmp_path / "out")
    old, new, told = weights(base), weights(updated), weights(instruct)
    for name, made in weights(tmp_path / "out").items():
        assert torch.equal(made, (told[name].double() - old[name].double()) + new[name].double())
    assert sum("correlation of the weights sketch 0.99" in remark for remark in report["remarks"]) == 2
    write_provenance(updated, kind="sft", base={"id": None, "fingerprint": fingerprint_checkpoint(base)})
    assert any("stems from" in remark for remark in merge(data, tmp_path / "known")["remarks"])
    other = tiny_checkpoint(tmp_path / "other", seed=7)
    for changed in ({"base": other}, {"operands": [{**operand, "minus": other}]}):
        with pytest.raises(CompatibilityError, match="they look like different bases; an instruction residual is ins"):
            merge({**data, **changed}, tmp_path / "no")
    merge({**data, "base": other, "allow": ["base"]}, tmp_path / "allowed")
    with pytest.raises(RecipeError, match="instruction_residual got 2, expected 1"):
        merge({**data, "operands": [operand, operand]}, tmp_path / "no")
    assert not (tmp_path / "no").exists()
