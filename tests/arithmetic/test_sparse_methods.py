"""The sparsifying methods against plain references on whole tensors, written from the papers' definitions."""

import math
import shutil

import numpy as np
import pytest
import torch
from peft.utils.merge_utils import magnitude_based_pruning
from safetensors.torch import save_file

from skillgraft.arithmetic import merge, merging
from skillgraft.arithmetic import tiles as tiles_module
from skillgraft.arithmetic.methods.breadcrumbs import band_ranks, breadcrumbs
from skillgraft.arithmetic.methods.cabs import cabs
from skillgraft.arithmetic.statistics.conflicts import count_conflicts, judge, layer_of
from skillgraft.arithmetic.statistics.pcb_scores import (
    PcbStatistics,
    exact_sum,
    exponential,
    fast_exact_sum,
    fast_numerators,
    kept_rank,
    numerators,
    power,
    scores,
)
from skillgraft.arithmetic.torch_tiles import on_device
from skillgraft.errors import CompatibilityError, RecipeError
from tests.tiny import split_into_shards, tiny_checkpoint, weights

EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
GATE, DOWN = "model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"
ZERO = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base and three models whose differences tie a lot (`GATE`), vanish for one (`DOWN`) or for all (`ZERO`)."""
    folder = tmp_path_factory.mktemp("models")
    tiny_checkpoint(folder / "base")
    base = weights(folder / "base")
    rng = torch.Generator().manual_seed(0)
    for name in "abc":
        shutil.copytree(folder / "base", folder / name)
        made = {}
        for tensor, values in base.items():
            step = torch.randn(values.shape, generator=rng) * 0.02
            if tensor == GATE:
                step = (step * 100).round() / 64
            if tensor == ZERO or (tensor == DOWN and name == "b"):
                step = torch.zeros(values.shape)
            made[tensor] = values + step
        save_file(made, folder / name / "model.safetensors", metadata={"format": "pt"})
    return folder


def merged(models, out, method, parameters=None, given=(("a", 1.0), ("b", 1.0), ("c", 1.0)), **more):
    """Merge in fp64; return (the change to the base, the operands' vectors) by tensor name, and the report."""
    operands = [{"model": models / name, "weight": weight} for name, weight in given]
    data = {"method": method, "base": models / "base", "operands": operands, "parameters": parameters or {}}
    report = merge({**data, "dtype": "float64"}, out, **more)
    base, made = weights(models / "base"), weights(out)
    change = {name: made[name] - base[name].double() for name in base}
    others = [weights(models / name) for name, _ in given]
    return change, {name: [other[name].double() - base[name].double() for other in others] for name in base}, report


def close(change, expected):
    for name, wanted in expected.items():
        assert torch.allclose(change[name], wanted, rtol=1e-9, atol=1e-14), name


def reference_breadcrumbs(vector, beta, gamma):
    order = vector.abs().flatten().sort().values
    count = len(order)
    most, least = order[count - 1 - math.floor(beta * count)], order[math.floor(gamma * count)]
    keep = (vector.abs() <= most) & (vector.abs() >= least)
    return torch.where(keep, vector, torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize(("beta", "gamma"), [(0.006, 0.85), (0.0, 0.5), (0.2, 0.0), (0.0, 0.0), (0.3, 0.69)])
def test_breadcrumbs(models, tmp_path, beta, gamma):
    given = (("a", 0.5), ("b", 1.5), ("c", -0.3))
    change, vectors, _ = merged(models, tmp_path / "out", "breadcrumbs", {"beta": beta, "gamma": gamma}, given)
    close(
        change,
        {
            name: sum(reference_breadcrumbs(v, beta, gamma) * w for v, (_, w) in zip(vs, given, strict=True))
            for name, vs in vectors.items()
        },
    )


def test_breadcrumbs_by_hand_and_as_peft_prunes(models, tmp_path):
    assert band_ranks(10, 0.2, 0.3) == (3, 7)
    assert band_ranks(2, 0.5, 0.49) == (2, 2)
    assert band_ranks(1, 0.9, 0.05) == (1, 1)
    vector = np.array([0.5, -4.0, 3.0, -2.0, 1.0, 3.0])
    assert breadcrumbs([vector], [2.0], [(3.0, 1.0)]).tolist() == [0, 0, 6, -4, 2, 6]
    change, vectors, _ = merged(models, tmp_path / "out", "breadcrumbs", {"beta": 0, "gamma": 0.75}, (("a", 1.0),))
    for name in (EMBEDDING, DOWN):  # no ties: PEFT keeps just so many
        close(change, {name: magnitude_based_pruning(vectors[name][0], density=0.25)})


def reference_cabs(vectors, weights_, n, m):
    """Block by block, element by element."""
    total = torch.zeros(vectors[0].numel(), dtype=torch.float64)
    flat = [vector.flatten().tolist() for vector in vectors]
    for start in range(0, len(total), m):
        taken = set()
        for values, weight in zip(flat, weights_, strict=True):
            places = [p for p in range(start, start + m) if p not in taken and values[p] != 0]
            for place in sorted(places, key=lambda p: (-abs(values[p]), p))[:n]:
                taken.add(place)
                total[place] += values[place] * weight
    return total.reshape(vectors[0].shape)


@pytest.mark.parametrize(("n", "m"), [(1, 4), (3, 8), (7, 16), (16, 16)])
def test_cabs(models, tmp_path, n, m):
    given = (("c", 0.5), ("a", 1.5), ("b", -0.3))
    change, vectors, _ = merged(models, tmp_path / "out", "cabs", {"n": n, "m": m}, given)
    close(change, {name: reference_cabs(vs, [w for _, w in given], n, m) for name, vs in vectors.items()})


def test_cabs_by_hand():
    """2 of 4: the first keeps −3 and the first 2; of what is left the second has 5 and 1, and one place stays empty."""
    one, two = np.array([2.0, -3.0, 2.0, 0.0]), np.array([9.0, 9.0, 1.0, 5.0])
    assert cabs([one, two], [1.0, 10.0], 2, 4).tolist() == [2, -3, 10, 50]
    assert cabs([one * 0, two], [1.0, 1.0], 2, 4).tolist() == [9, 9, 0, 0]  # what is 0 takes no place
    assert cabs([two, one], [1.0, 1.0], 3, 4).tolist() == [9, 9, 2, 5]  # the order of the operands decides


def normalised(values):
    width = values.max() - values.min()
    return (values - values.min()) / width if width > 0 else torch.zeros_like(values)


def reference_pcb(vectors, lambdas, ratio):
    """The paper's formulas on whole flat vectors (N, D)."""
    number, size = vectors.shape
    kept = []
    for i in range(number):
        intra = torch.softmax(number * normalised(vectors[i] * vectors[i]), 0)
        inter = sum(torch.softmax(normalised(vectors[i] * vectors[j]), 0) for j in range(number))
        beta = intra * inter
        least = beta.sort().values[min(math.floor((1 - ratio) * size), size - 1)]
        kept.append(torch.where(beta >= least * (1 - 1e-12), beta, torch.zeros(()).double()))
    above = sum(w * beta * vector for w, beta, vector in zip(lambdas, kept, vectors, strict=True))
    below = sum(kept)
    return torch.where(below > 0, above / torch.where(below > 0, below, torch.ones(()).double()), above * 0)


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize(("ratio", "lambdas"), [(0.2, (1, 1, 1)), (0.05, (0.8, 1.2, -0.5)), (1.0, (1, 1, 1))])
def test_pcb(models, tmp_path, scope, ratio, lambdas):
    given = tuple(zip("abc", map(float, lambdas), strict=True))
    change, vectors, _ = merged(models, tmp_path / "out", "pcb", {"ratio": ratio, "scope": scope}, given)
    if scope == "tensor":
        stacked = {name: torch.stack([v.flatten() for v in vs]) for name, vs in vectors.items()}
        made = {name: reference_pcb(flat, lambdas, ratio) for name, flat in stacked.items()}
    else:
        flat = torch.stack([torch.cat([vs[i].flatten() for vs in vectors.values()]) for i in range(3)])
        sizes = [vs[0].numel() for vs in vectors.values()]
        made = dict(zip(vectors, reference_pcb(flat, lambdas, ratio).split(sizes), strict=True))
    close(change, {name: made[name].reshape(vectors[name][0].shape) for name in vectors})


def test_pcb_counts_an_absent_tensor_as_zeros(models, tmp_path):
    """An operand that says nothing of a tensor is 0 there: `b` lacks one that `a` and the base have."""
    for name in ("base", "a", "b"):
        shutil.copytree(models / name, tmp_path / name)
    lacking = weights(tmp_path / "b")
    del lacking[DOWN]  # `b` has the base's values there
    save_file(lacking, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    given = [{"model": tmp_path / "a"}, {"model": tmp_path / "b"}]
    data = {"method": "pcb", "base": tmp_path / "base", "operands": given, "dtype": "float64", "allow": ["missing"]}
    merge(data, tmp_path / "lacking")
    merged(models, tmp_path / "whole", "pcb", None, (("a", 1.0), ("b", 1.0)))
    one, other = weights(tmp_path / "lacking"), weights(tmp_path / "whole")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_exponential_and_its_sums():
    x = -np.random.default_rng(0).random(50_000)
    exact = np.array([math.exp(value) for value in x])
    assert np.abs(exponential(x) / exact - 1).max() < 1e-15
    assert exponential(np.array([0.0, -1.0])) == pytest.approx([1, math.exp(-1)], rel=1e-15)
    values = exponential(x)
    assert exact_sum(values) == fast_exact_sum(values) == sum(round(value * 2**60) for value in values.tolist())
    assert exact_sum(values) == exact_sum(values[::-1]) == exact_sum(values[:777]) + exact_sum(values[777:])
    assert power(values, 3).tolist() == (values * values * values).tolist()
    assert [kept_rank(10, ratio) for ratio in (0.25, 0.2, 1.0, 0.01)] == [3, 2, 10, 1]


def test_numpy_numba_and_torch_agree_on_every_bit():
    rng = np.random.default_rng(1)
    vectors = [rng.standard_normal(4096) * 10.0**-number for number in range(3)]
    low, high = (np.array([[end(one * other) for other in vectors] for one in vectors]) for end in (np.min, np.max))
    statistics = PcbStatistics((0, 1, 2), low, high, np.full((3, 3), 3.7), np.full(3, 2.3))
    tensors = [torch.from_numpy(vector) for vector in vectors]
    plain, compiled, device = (
        scores(make(given, low, high), statistics)
        for make, given in (
            (numerators, vectors),
            (fast_numerators, vectors),
            (fast_numerators, tensors),
        )
    )
    for one, two, three in zip(plain, compiled, device, strict=True):
        assert (one == two).all()
        assert (one == three.numpy()).all()
    for n, m in ((3, 8), (1, 2)):
        assert (cabs(vectors, [1.0, 2.0, 3.0], n, m) == cabs(tensors, [1.0, 2.0, 3.0], n, m).numpy()).all()


def test_mediator(models, tmp_path):
    given = (("a", 0.5), ("b", 2.0), ("c", -1.0))
    change, vectors, report = merged(models, tmp_path / "out", "mediator", None, given)
    lambdas = [weight for _, weight in given]
    groups = {}
    for name, found in vectors.items():
        signs = torch.stack([torch.sign(v * w) for v, w in zip(found, lambdas, strict=True)])
        shared = signs.abs().sum(0) >= 2
        opposed = (signs.max(0).values - signs.min(0).values == 2) & shared
        layer = ".".join(name.split(".")[:3]) if ".layers." in name else name
        before = groups.get(layer, (0, 0))
        groups[layer] = (before[0] + int(opposed.sum()), before[1] + int(shared.sum()))
    conflict = {layer: opposed / shared for layer, (opposed, shared) in groups.items()}
    limit = sum(conflict.values()) / len(conflict)
    assert {row["layer"]: row["conflict"] for row in report["layers"]} == conflict
    assert {row["layer"]: row["calm"] for row in report["layers"]} == {k: v <= limit for k, v in conflict.items()}
    assert {True, False} == {row["calm"] for row in report["layers"]}
    expected = {}
    for name, found in vectors.items():
        calm = conflict[layer_of(name)] <= limit
        expected[name] = sum(v * w for v, w in zip(found, lambdas, strict=True)) / (sum(lambdas) if calm else 1)
    close(change, expected)
    parameters = {"threshold": 0.0, "fallback": "first"}
    change, vectors, _ = merged(models, tmp_path / "first", "mediator", parameters, given)
    close(change, {name: found[0] * 0.5 for name, found in vectors.items() if name != ZERO})
    change, vectors, _ = merged(models, tmp_path / "calm", "mediator", {"threshold": 1.0}, given)
    close(change, {n: sum(v * w for v, w in zip(vs, lambdas, strict=True)) / 1.5 for n, vs in vectors.items()})


def test_the_conflict_by_hand():
    one, two, three = np.array([1.0, -1, 0, 2, 0]), np.array([2.0, 1, 0, 0, 5]), np.array([3.0, -1, 0, -1, 0])
    assert count_conflicts([one, two, three], [1, 1, 1]) == (2, 3)  # of elements 0, 1, 3 the last two
    assert count_conflicts([one, two], [1, -1]) == (1, 2)
    assert [layer_of(n) for n in (GATE, NORM, "h.11.attn.w", "model.language_model.layers.3.x")] == [
        "model.layers.0",
        NORM,
        "h.11",
        "model.language_model.layers.3",
    ]
    found = judge({"x": (1, 4), "y": (3, 4), "z": (0, 0)}, None)
    assert [(f.conflict, f.calm) for f in found.values()] == [(0.25, True), (0.75, False), (0.0, True)]
    assert [f.calm for f in judge({"x": (1, 4), "y": (3, 4)}, 0.8).values()] == [True, True]


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("breadcrumbs", {"beta": 0.1, "gamma": 0.5}),
        ("pcb", {"scope": "model"}),
        ("pcb", {"scope": "tensor"}),
        ("cabs", {"n": 5, "m": 16}),
        ("mediator", {}),
    ],
)
def test_tiles_threads_shards_and_torch_change_no_bit(models, tmp_path, monkeypatch, method, parameters):
    merged(models, tmp_path / "one", method, parameters, threads=1)
    for name in ("base", *"abc"):
        split_into_shards(models / name, tmp_path / "sharded" / name, shards=3)
    with monkeypatch.context() as patch:
        patch.setattr(tiles_module, "TILE_ELEMENTS", 333)
        patch.setattr("skillgraft.arithmetic.statistics.order_statistics.ScoreSearch.HELD", 100)
        patch.setattr("skillgraft.arithmetic.statistics.key_search.BIN_BITS", 5)
        merged(models, tmp_path / "two", method, parameters, threads=5)
    operands = [{"model": tmp_path / "sharded" / name} for name in "abc"]
    data = {"method": method, "base": tmp_path / "sharded/base", "operands": operands, "parameters": parameters}
    merge({**data, "dtype": "float64"}, tmp_path / "three", threads=3)
    monkeypatch.setattr(merging, "compute_on", lambda name: on_device(torch.device(name)))
    merged(models, tmp_path / "four", method, parameters)
    one = weights(tmp_path / "one")
    for other in ("two", "three", "four"):
        assert all(torch.equal(one[name], tensor) for name, tensor in weights(tmp_path / other).items()), other


def test_rows_that_only_some_vocabularies_have(tmp_path):
    """Beyond the last row of a shorter vocabulary its vector is 0, and blocks end there too."""
    base = tiny_checkpoint(tmp_path / "base", seed=1, tie=False, vocab_size=336)
    tensors = weights(base)
    for number, (name, rows) in enumerate((("long", 336), ("short", 320))):
        tiny_checkpoint(tmp_path / name, seed=1, tie=False, vocab_size=rows)
        rng = torch.Generator().manual_seed(number)
        cut = {n: t[:rows] if t.shape[0] == 336 else t for n, t in tensors.items()}
        moved = {n: t + torch.randn(t.shape, generator=rng) / 50 for n, t in cut.items()}
        save_file(moved, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    long, short = weights(tmp_path / "long"), weights(tmp_path / "short")
    for method, parameters in (("pcb", {"scope": "tensor"}), ("cabs", {"n": 1, "m": 32})):
        given = [{"model": tmp_path / "long"}, {"model": tmp_path / "short"}]
        data = {"method": method, "base": base, "operands": given, "parameters": parameters, "dtype": "float64"}
        merge(data, tmp_path / method)
        made = weights(tmp_path / method)["lm_head.weight"] - tensors["lm_head.weight"].double()
        one = long["lm_head.weight"].double() - tensors["lm_head.weight"].double()
        two = torch.zeros_like(one)
        two[:320] = short["lm_head.weight"].double() - tensors["lm_head.weight"][:320].double()
        if method == "cabs":
            wanted = reference_cabs([one, two], [1, 1], 1, 32)
        else:
            wanted = reference_pcb(torch.stack([one.flatten(), two.flatten()]), (1, 1), 0.2).reshape(one.shape)
        close({"x": made}, {"x": wanted})


@pytest.mark.parametrize(
    ("method", "parameters", "given", "message"),
    [
        ("pcb", {}, "a", "operands: pcb got 1, expected at least 2"),
        ("cabs", {}, "a", "operands: cabs got 1, expected at least 2"),
        ("mediator", {}, "a", "operands: mediator got 1, expected at least 2"),
        ("ratatouille", {}, "a", "operands: ratatouille got 1, expected at least 2"),
        ("copa", {}, "ab", r"operands.0 is the checkpoint .*a; copa merges low-rank factors: expected adapters"),
        ("cabs", {"n": 9, "m": 8}, "ab", "n 9 is larger than m 8; expected n of m elements to be kept"),
        ("cabs", {"n": 1, "m": 24}, "ab", r"tensor '.*' of shape \[\d+.*\] has \d+ elements, .*: 32 and what divides"),
        ("cabs", {}, "ab", "parameters.m is 256: .*: 32 and what divides it do, such as n: 8, m: 32"),
        ("cabs", {"n": 0}, "ab", "parameters.n is 0: input should be greater than or equal to 1"),
        ("pcb", {"ratio": 0}, "ab", "parameters.ratio is 0: input should be greater than 0"),
        ("pcb", {"ratio": 1.5}, "ab", "parameters.ratio is 1.5: input should be less than or equal to 1"),
        ("breadcrumbs", {"beta": 0.5, "gamma": 0.5}, "ab", "beta 0.5 and gamma 0.5 leave nothing; expected a sum bel"),
        ("breadcrumbs", {"gamma": -0.1}, "ab", "parameters.gamma is -0.1: input should be greater than or equal to 0"),
        ("mediator", {"threshold": 2}, "ab", "parameters.threshold is 2: input should be less than or equal to 1"),
        ("ratatouille", {}, "aa", "operands.1 is the same model as operands.0; ratatouille averages several"),
        ("instruction_residual", {}, "a", "operands.0: instruction_residual takes an instruct model and, as minus"),
    ],
)
def test_mistakes(models, tmp_path, method, parameters, given, message):
    with pytest.raises(RecipeError, match=message):
        merged(models, tmp_path / "out", method, parameters, [(name, 1.0) for name in given])
    assert list(tmp_path.iterdir()) == []


def test_weights_that_cannot_divide_and_numbers_that_overflow(models, tmp_path):
    for method in ("mediator", "ratatouille"):
        with pytest.raises(RecipeError, match=r"the weights \[1.0, -1.0\] sum to 0, and .* averages; choose others"):
            merged(models, tmp_path / "out", method, None, (("a", 1.0), ("b", -1.0)))
    for name in ("base", "a"):
        shutil.copytree(models / name, tmp_path / name)
    tensors = {name: tensor.double() for name, tensor in weights(tmp_path / "base").items()}
    for name, value in (("a", 1e200), ("b", -1e200)):
        tensors[NORM] = torch.full_like(tensors[NORM], value)
        shutil.copytree(models / "a", tmp_path / name, dirs_exist_ok=True)
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    given = [{"model": tmp_path / "a"}, {"model": tmp_path / "b"}]
    data = {"method": "pcb", "base": tmp_path / "base", "operands": given, "dtype": "float64"}
    with pytest.raises(CompatibilityError, match="products of its elements overflow fp64"):
        merge(data, tmp_path / "out")
    tensors[NORM][3] = math.nan
    save_file(tensors, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    for method, parameters in (("breadcrumbs", {}), ("cabs", {"n": 1, "m": 2}), ("mediator", {}), ("pcb", {})):
        with pytest.raises(CompatibilityError, match=f"tensor '{NORM}' holds NaN or infinity"):
            merge({**data, "method": method, "parameters": parameters}, tmp_path / "out")
    assert not (tmp_path / "out").exists()
