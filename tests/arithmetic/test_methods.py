"""The contract of a merging method: one object says all, and its kernel is its definition."""

import ast
import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import Field

import skillgraft
from skillgraft.arithmetic import merge, merging
from skillgraft.arithmetic.arrays import choose
from skillgraft.arithmetic.merge_recipe import parse_merge_recipe
from skillgraft.arithmetic.mergekit import mergekit_yaml
from skillgraft.arithmetic.methods import METHODS, all_methods, get_method
from skillgraft.arithmetic.methods.method import Mergekit, Method, Parameters, Statistic
from skillgraft.arithmetic.rounding import round_once
from skillgraft.arithmetic.torch_tiles import on_device
from skillgraft.errors import RecipeError
from tests.arithmetic.test_lowrank_and_family import factors_of, write_adapter
from tests.tiny import weights

SETTINGS = {"cabs": {"n": 3, "m": 8}, "breadcrumbs": {"beta": 0.05, "gamma": 0.3}}


def operands_of(method, family, tmp_path):
    """Operands that the method takes, three of them with weights where it can."""
    if method == "copa":
        return [{"adapter": str(write_adapter(tmp_path / f"l{seed}", factors_of(seed)))} for seed in (1, 2)]
    if method == "instruction_residual":
        return [{"model": str(family / "a"), "minus": str(family / "b"), "weight": 0.7}]
    if not METHODS[method].weighted:
        return [{"model": str(family / name)} for name in "ab"]
    return [{"model": str(family / name), "weight": weight} for name, weight in (("a", 0.3), ("b", 1.1), ("c", -0.2))]


def merged(family, out, method, operands, parameters=None, **more):
    merge(
        {"method": method, "base": family / "base", "operands": operands, "parameters": parameters or {}, **more}, out
    )
    return weights(out)


def same(one, other):
    return all(torch.equal(one[name].view(torch.int32), other[name].view(torch.int32)) for name in one)


@pytest.mark.parametrize("method", METHODS)
def test_the_kernels_are_the_definitions(family, tmp_path, monkeypatch, method):
    """`combine` on Torch tensors, as a GPU runs it, and on NumPy arrays gives the bits of the compiled kernel."""
    operands, settings = operands_of(method, family, tmp_path), SETTINGS.get(method)
    compiled = merged(family, tmp_path / "kernel", method, operands, settings, dtype="float32")
    with monkeypatch.context() as patch:
        patch.setattr(merging, "compute_on", lambda name: on_device(torch.device(name)))
        assert same(compiled, merged(family, tmp_path / "torch", method, operands, settings, dtype="float32"))
    monkeypatch.setitem(METHODS, method, replace(METHODS[method], kernel=None))
    assert same(compiled, merged(family, tmp_path / "numpy", method, operands, settings, dtype="float32"))


def test_each_method_is_one_object_in_a_file_of_its_name():
    for name, method in METHODS.items():
        module = importlib.import_module(f"skillgraft.arithmetic.methods.{name}")
        assert getattr(module, name.upper()) is method
        assert method.name == name
        assert module.__doc__
    assert len({method.parameters for method in METHODS.values()}) == len(METHODS)


def test_no_other_code_knows_a_method_by_its_name():
    """But injection `task_arithmetic`, by which skills add up."""
    package = Path(skillgraft.__file__).parent
    for file in (file for wing in ("arithmetic", "tuning", "geometry") for file in (package / wing).rglob("*.py")):
        if file.parent.name != "methods":
            names = METHODS.keys() - ({"task_arithmetic"} if file.parent.name == "injection" else set())
            constants = {node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)}
            assert not constants & names, file


@pytest.mark.process
def test_listing_the_methods_loads_neither_numpy_nor_torch():
    code = (
        "import sys\n"
        "from skillgraft.arithmetic.methods import all_methods\n"
        "assert all_methods()['ties'].parameters.model_json_schema()\n"
        "print(sorted({'torch', 'numba', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_unknown_method():
    with pytest.raises(RecipeError, match="method is 'slrp'; did you mean 'slerp'\\? available: breadcrumbs, cabs, "):
        get_method("slrp")
    with pytest.raises(RecipeError, match="recipe: method is None; available: breadcrumbs"):
        parse_merge_recipe({"base": "b", "operands": []}, "recipe")


class Gain(Parameters):
    """The toy's own."""

    gain: float = Field(2.0, gt=0, description="by which the change is multiplied")


def largest_magnitudes(tensors, parameters, thread_buffers):
    from skillgraft.arithmetic.statistics.bands import magnitude_bands

    bands = magnitude_bands(tensors, lambda elements: (1, elements), thread_buffers)
    return {name: [most for most, _ in of_operands] for name, of_operands in bands.items()}


def scaled_by_largest(values, tile):
    """λ·Σ wᵢ·τᵢ/max|τᵢ|."""
    total = values[0] * 0.0
    for value, weight, most in zip(values, tile.weights, tile.statistics, strict=True):
        total = total + value * (weight / most)
    return total * tile.parameters.gain


def refuse_three(recipe):
    if len(recipe.operands) == 3:
        raise RecipeError("toy takes no three operands")


def with_remark(draft):
    return replace(draft, remarks=(*draft.remarks, f"{sum(bool(t.operands) for t in draft.tensors)} tensors for toy"))


TOY = Method(
    name="toy",
    inputs="vectors",
    combine=scaled_by_largest,
    parameters=Gain,
    statistics=Statistic(
        largest_magnitudes, passes=2, per_operand=True, report=lambda found: {"largest": max(map(max, found.values()))}
    ),
    check=refuse_three,
    plan=with_remark,
    mergekit=Mergekit("toy", lambda parameters, models, base: {"gain": parameters.gain}),
)
MAXIMUM = Method(
    "maximum", "models", lambda values, tile: choose(values[0] >= values[1], *values), Gain, min_operands=2
)


@pytest.fixture(params=["numpy", "torch"])
def path(request, monkeypatch):
    """The toys, registered by one object each, on either path."""
    for toy in (TOY, MAXIMUM):
        monkeypatch.setitem(METHODS, toy.name, toy)
    if request.param == "torch":
        monkeypatch.setattr(merging, "compute_on", lambda name: on_device(torch.device(name)))


def test_a_method_is_added_by_one_object(path, family, tmp_path):
    operands = [{"model": str(family / "a"), "weight": 0.5}, {"model": str(family / "b")}]
    recipe = {"method": "toy", "base": family / "base", "operands": operands, "parameters": {"gain": 0.01}}
    report = merge({**recipe, "dtype": "float32"}, tmp_path / "out")
    base, a, b = ({n: t.double() for n, t in weights(family / name).items()} for name in ("base", "a", "b"))
    largest = 0.0
    for name, stored in weights(tmp_path / "out").items():
        vectors = [a[name] - base[name], b[name] - base[name]]
        most = [vector.abs().max().item() for vector in vectors]
        largest = max(largest, *most)
        change = (vectors[0] * (0.5 / most[0]) + vectors[1] * (1.0 / most[1])) * 0.01
        exact = (change + base[name]).reshape(-1)
        assert torch.equal(stored.reshape(-1), round_once(exact, torch.float32)), name
    assert report["method"] == "toy"
    assert report["largest"] == largest
    assert f"{len(base)} tensors for toy" in report["remarks"]
    assert merging.estimate(merging.plan_merge(parse_merge_recipe(recipe)))["bytes_read"] > 0
    assert all(line in mergekit_yaml(parse_merge_recipe(recipe)) for line in ("merge_method: toy", "  gain: 0.01"))


def test_a_method_on_models_without_a_kernel(path, family, tmp_path):
    recipe = {"method": "maximum", "base": family / "base", "operands": [{"model": family / n} for n in "ab"]}
    merge(recipe, tmp_path / "out")
    a, b = weights(family / "a"), weights(family / "b")
    assert all(torch.equal(stored, torch.maximum(a[n], b[n])) for n, stored in weights(tmp_path / "out").items())


def test_an_added_method_is_checked_as_any(path, family, tmp_path):
    operands = [{"model": str(family / name)} for name in "abc"]
    recipe = {"method": "toy", "base": family / "base", "operands": operands[:2]}
    assert {"toy", "maximum"} < all_methods().keys()
    for change, message in (
        ({"operands": operands}, "toy takes no three operands"),
        ({"parameters": {"gian": 1}}, "unknown key 'parameters.gian'; did you mean 'gain'?"),
        ({"parameters": {"gain": 0}}, "parameters.gain is 0: input should be greater than 0"),
        ({"method": "tov"}, "method is 'tov'; did you mean 'toy'?"),
        ({"method": "maximum", "operands": operands[:1]}, "operands: maximum got 1, expected at least 2"),
    ):
        with pytest.raises(RecipeError) as caught:
            merge({**recipe, **change}, tmp_path / "out")
        assert message in str(caught.value)
    with pytest.raises(RecipeError, match=r"maximum has no mergekit equivalent: .* available: linear, .*, toy"):
        mergekit_yaml(parse_merge_recipe({**recipe, "method": "maximum"}))
    assert not (tmp_path / "out").exists()


def test_arithmetic_imports_no_wing_above_it():
    package = Path(skillgraft.__file__).parent
    for file in (package / "arithmetic").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            if module.startswith("skillgraft."):
                assert module.split(".")[1] in {
                    "adapters",
                    "arithmetic",
                    "checkpoint",
                    "errors",
                    "skills",
                    "support",
                }, file
