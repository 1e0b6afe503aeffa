"""pack: what the manifest says is what was lost, budgets hold, LoRA passes through, mistakes are one clear error."""

import json
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from skillgraft.arithmetic import extract
from skillgraft.checkpoint import fingerprint_file
from skillgraft.compression import describe, directory_bytes, pack, record_scores
from skillgraft.compression.encoding import half, narrowest
from skillgraft.compression.settings import PackSettings, parse_size
from skillgraft.errors import CompatibilityError, OutputExistsError, RecipeError
from skillgraft.skills import load_skill
from skillgraft.skills.modules import module_kind
from skillgraft.skills.summary import skill_facts
from skillgraft.skills.to_peft import convert_to_peft
from skillgraft.support import resources
from tests.tiny import tiny_checkpoint, tiny_finetune

SETTINGS = [
    ("dense", {"dtype": "bfloat16"}),
    ("sparse", {}),
    ("lowrank", {"rank": 4}),
    ("lowrank", {"energy": 0.8, "dtype": "bfloat16"}),
    ("lowrank", {"rank": 4, "dtype": "float32"}),
    ("packed", {"rank": 8}),
    ("packed", {"energy": 0.7, "density": 0.3}),
    ("mask", {"density": 0.05}),
    ("mask", {"density": 0.2, "dtype": "float16"}),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A full-rank skill whose matrices have a decaying spectrum, from a model large enough that budgets matter."""
    folder = tmp_path_factory.mktemp("source")
    tiny_checkpoint(folder / "sft", hidden_size=64, intermediate_size=160)
    return extract(tiny_finetune(folder / "sft", folder / "rl", size=1e-3), folder / "sft", folder / "skill")


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A skill of RL with LoRA."""
    folder = tmp_path_factory.mktemp("lora")
    sft = tiny_checkpoint(folder / "sft")
    torch.manual_seed(0)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(sft),
        LoraConfig(r=3, target_modules=["q_proj", "up_proj"], init_lora_weights=False),
    )
    model.save_pretrained(folder / "adapter")
    return extract(folder / "adapter", sft, folder / "skill")


@pytest.mark.parametrize(("form", "settings"), SETTINGS)
def test_the_manifest_says_what_was_lost(source, tmp_path, form, settings):
    packed = pack(source, tmp_path / "packed", form, **settings)
    sums = {}
    for name in source.names:
        exact = source.delta(name).double()
        left = packed.delta(name).double() if name in packed.names else torch.zeros_like(exact)
        lost, whole = (left - exact).square().sum().item(), exact.square().sum().item()
        if name in packed.names:
            entry = packed.entry(name)
            assert entry.reconstruction_error == pytest.approx(math.sqrt(lost / whole), rel=1e-5, abs=1e-9)
            assert entry.norm == pytest.approx(left.norm().item(), rel=1e-5)
        for key in ("whole", module_kind(name)):
            before = sums.get(key, (0.0, 0.0))
            sums[key] = (before[0] + lost, before[1] + whole)
    expected = {key: math.sqrt(lost / whole) for key, (lost, whole) in sums.items()}
    manifest = packed.manifest
    assert manifest.reconstruction_error == pytest.approx(expected.pop("whole"), rel=1e-5, abs=1e-9)
    assert manifest.packing.errors == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert manifest.packing.form == packed.form == form
    assert manifest.packing.settings == settings
    assert manifest.packing.source == fingerprint_file(source.weights_file)
    assert manifest.packing.source_bytes == directory_bytes(source.path)
    assert manifest.format_version == 2
    assert (manifest.base, manifest.rl, manifest.sketch) == (
        source.manifest.base,
        source.manifest.rl,
        source.manifest.sketch,
    )
    load_file(packed.weights_file)  # the library's reader takes it
    if form == "sparse":
        assert manifest.reconstruction_error == 0.0
        assert all(torch.equal(packed.delta(name), source.delta(name)) for name in source.names)


def test_a_rank_is_the_best_of_that_rank(source, tmp_path):
    packed = pack(source, tmp_path / "packed", "lowrank", rank=4, dtype="float32")
    for name in source.names:
        entry, exact = packed.entry(name), source.delta(name).double()
        if exact.ndim == 1:
            assert entry.form == "dense"
            assert torch.equal(packed.delta(name), source.delta(name))
            continue
        s = torch.linalg.svdvals(exact)
        assert (entry.form, entry.rank) == ("lowrank", 4)
        best = (s[4:].square().sum() / s.square().sum()).sqrt().item()
        assert entry.reconstruction_error == pytest.approx(best, rel=1e-6)


def test_an_energy_is_reached_with_the_least_rank(source, tmp_path):
    packed = pack(source, tmp_path / "packed", "lowrank", energy=0.6, dtype="float32")
    for name in source.names:
        if packed.entry(name).form == "lowrank":
            energy = torch.linalg.svdvals(source.delta(name).double()).square()
            share, rank = energy.cumsum(0) / energy.sum(), packed.entry(name).rank
            assert share[rank - 1] >= 0.6
            assert rank == 1 or share[rank - 2] < 0.6


def test_a_mask_keeps_the_largest_of_the_whole_vector(source, tmp_path):
    packed = pack(source, tmp_path / "packed", "mask", density=0.05)
    everything = torch.cat([source.delta(name).abs().reshape(-1) for name in source.names])
    wanted = int(0.05 * len(everything))
    threshold = everything.sort(descending=True).values[wanted - 1]
    for name in packed.names:
        delta = source.delta(name)
        assert torch.equal(packed.delta(name), torch.where(delta.abs() >= threshold, delta, 0.0))
    assert sum(packed.entry(name).count for name in packed.names) == (everything >= threshold).sum()


def test_skill_packs_treat_kinds_of_modules_apart(source, tmp_path):
    packed = pack(source, tmp_path / "packed", "packed", rank=8, density=0.02)
    for name in source.names:
        entry, kind = packed.entry(name), module_kind(name)
        if kind == "embedding":
            assert (entry.form, entry.count) == ("sparse", int(0.02 * entry.elements))
        elif kind == "norm":
            assert (entry.form, entry.reconstruction_error) == ("dense", 0.0)
        else:
            assert (entry.form, entry.rank) == ("packed", {"mlp": 8, "attention": 4}[kind])
            assert list(entry.widths) == sorted(entry.widths, reverse=True)


@pytest.mark.parametrize("form", ["lowrank", "packed", "mask"])
def test_a_budget_holds_and_buys_accuracy(source, tmp_path, form):
    least = directory_bytes(pack(source, tmp_path / "least", "lowrank", rank=1).path)
    errors = []
    for number, budget in enumerate((least + 20_000, least + 60_000, least + 150_000)):
        packed = pack(source, tmp_path / str(number), form, budget=budget)
        assert directory_bytes(packed.path) <= budget
        errors.append(packed.manifest.reconstruction_error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]


def test_a_budget_that_nothing_fits(source, tmp_path):
    for form in ("lowrank", "mask"):
        with pytest.raises(RecipeError, match=r"budget 2000 bytes: header, manifest, card and .* take \d+; expec"):
            pack(source, tmp_path / "packed", form, budget=2000)
    assert not (tmp_path / "packed").exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("settings", [{"rank": 3}, {"rank": 32}, {"energy": 1.0}, {"budget": 10_000_000}])
def test_rl_with_lora_passes_through_exactly(lora, tmp_path, settings):
    packed = pack(lora, tmp_path / "packed", "lowrank", **settings)
    before, after = load_file(lora.weights_file), load_file(packed.weights_file)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert packed.manifest.reconstruction_error == 0.0
    assert pack(lora, tmp_path / "sparse", "sparse").manifest.reconstruction_error == 0.0


def test_fewer_directions_of_a_lora(lora, tmp_path):
    packed = pack(lora, tmp_path / "packed", "lowrank", rank=2, dtype="float32")
    for name in lora.names:
        s = torch.linalg.svdvals(lora.delta(name).double())
        best = (s[2:].square().sum() / s.square().sum()).sqrt().item()
        assert packed.entry(name).reconstruction_error == pytest.approx(best, rel=1e-4)
    again = pack(packed, tmp_path / "again", "packed", rank=2)
    assert again.manifest.packing.source_reconstruction_error == packed.manifest.reconstruction_error
    assert {again.entry(name).form for name in again.names} == {"packed"}
    back = pack(again, tmp_path / "back", "dense")
    assert all(torch.allclose(back.delta(name), again.delta(name), atol=1e-7) for name in back.names)


def error_against(packed, source):
    """‖packed − source‖ / ‖source‖ over all tensors of the source."""
    lost = whole = 0.0
    for name in source.names:
        exact = source.delta(name).double()
        left = packed.delta(name).double() if name in packed.names else torch.zeros_like(exact)
        lost, whole = lost + (left - exact).square().sum().item(), whole + exact.square().sum().item()
    return math.sqrt(lost / whole)


def test_what_was_lost_before_is_not_forgotten(source, tmp_path):
    once = pack(source, tmp_path / "once", "lowrank", rank=4)
    first = once.manifest.reconstruction_error
    again = pack(once, tmp_path / "again", "lowrank", rank=4)
    assert again.manifest.reconstruction_error == first > 0.5  # nothing more is lost: what was lost stays lost
    assert (again.manifest.packing.error, again.manifest.error_is_bound) == (0.0, False)
    twice = pack(once, tmp_path / "twice", "packed", rank=2)
    packing, second = twice.manifest.packing, error_against(twice, once)
    assert packing.error == pytest.approx(second, rel=1e-5)
    assert packing.source_reconstruction_error == first
    assert twice.manifest.reconstruction_error == pytest.approx(first + (1 + first) * second, rel=1e-5)
    assert twice.manifest.error_is_bound
    assert error_against(twice, source) <= twice.manifest.reconstruction_error
    card = (twice.path / "README.md").read_text()
    assert f"| reconstruction error | at most {twice.manifest.reconstruction_error:.3g} (relative Frobenius) |" in card
    assert f"| packed | as packed (rank 2) from {packing.source} |" in card
    assert f"| lost before | {first:.3g} |" in card
    facts = skill_facts(twice)
    assert facts["packing"]["errors"] == packing.errors
    assert facts["packing"]["source"] == fingerprint_file(once.weights_file)
    assert facts["reconstruction_error_is_bound"]
    assert describe(twice, once)["packing_error"] == packing.error


def test_small_numbers_are_not_rounded_to_nothing(tmp_path):
    """2e-8 is below the smallest number of float16, and no reason to lose it."""
    sft = tiny_checkpoint(tmp_path / "sft")
    small = extract(tiny_finetune(sft, tmp_path / "rl", size=2e-8), sft, tmp_path / "skill")
    whole = pack(small, tmp_path / "whole", "lowrank", rank=32)  # as many numbers as the matrix: stored dense
    assert whole.manifest.reconstruction_error < 4e-3
    assert {whole.entry(name).dtype for name in whole.names if len(whole.shape(name)) == 2} == {"BF16"}
    assert "stored in bfloat16, since float16 would lose more" in describe(whole, small)["remarks"][0]
    assert "--dtype float32" in describe(whole, small)["remarks"][0]
    for number, settings in enumerate(({"rank": 8, "density": 1.0}, {"budget": 100_000})):
        packed = pack(small, tmp_path / str(number), "packed", **settings)
        entry = packed.entry("model.embed_tokens.weight")
        assert (entry.form, entry.dtype) == ("sparse", "BF16")
        assert number or entry.reconstruction_error < 4e-3
    asked = pack(small, tmp_path / "asked", "lowrank", rank=32, dtype="float16")
    assert asked.manifest.reconstruction_error > 0.5  # what was asked for is done


def test_which_half():
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(1000, generator=generator)
    for size in (1e4, 1.0, 1e-3, 1e-4, 2e-5):
        assert half(numbers * size, numbers) == "F16"
    for size in (1e5, 1e-6, 1e-8):
        assert half(numbers, numbers * size) == "BF16"
    assert half(torch.zeros(3)) == half(numbers[:0]) == "F16"


def test_what_no_memory_holds(source, lora, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "memory", lambda: resources.Memory(50_000, 50_000))
    for number, (form, settings) in enumerate(SETTINGS):
        with pytest.raises(CompatibilityError, match=r"takes at least .* GiB of memory .* are available; leave it in"):
            pack(source, tmp_path / str(number), form, **settings)
    assert list(tmp_path.iterdir()) == []
    pack(lora, tmp_path / "kept", "lowrank", rank=3)  # what stays as it is need not be decoded


def test_settings_of_a_mask_that_is_not_optimised(source, tmp_path):
    for settings in ({"steps": 4}, {"target": "x"}):
        with pytest.raises(RecipeError, match="they are for optimising a mask"):
            pack(source, tmp_path / "out", "mask", density=0.1, **settings)


def test_scores_within_a_budget(source, tmp_path):
    packed, rows = pack(source, tmp_path / "packed", "lowrank", rank=1), [{"model": "gain kept", "token F1": "80%"}]
    size = directory_bytes(packed.path)
    assert not record_scores(packed, rows, size + 10)
    assert load_skill(packed.path).manifest.scores == []
    assert record_scores(packed, rows, size + 1000)
    assert size < directory_bytes(packed.path) <= size + 1000
    assert load_skill(packed.path).manifest.scores == rows


def test_a_packed_lora_becomes_an_adapter_exactly(lora, tmp_path):
    packed = pack(lora, tmp_path / "packed", "packed", rank=3)
    report = convert_to_peft(packed, tmp_path / "adapter")
    assert report["exact"]
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name in packed.names:
        a, b = packed.product(name)
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        assert torch.equal(tensors[f"{prefix}.lora_A.weight"], a)
        assert torch.equal(tensors[f"{prefix}.lora_B.weight"], b)


def test_the_same_bytes_every_time(source, tmp_path):
    for form, settings in (("packed", {"budget": 120_000}), ("lowrank", {"rank": 2})):
        one = pack(source, tmp_path / f"{form}1", form, **settings)
        two = pack(source, tmp_path / f"{form}2", form, **settings)
        assert one.weights_file.read_bytes() == two.weights_file.read_bytes()


def test_describe(source, tmp_path):
    packed = pack(source, tmp_path / "packed", "mask", density=0.01)
    facts = describe(packed)
    assert facts["size_bytes"] == sum(file.stat().st_size for file in packed.path.iterdir())
    assert facts["ratio"] == directory_bytes(source.path) / facts["size_bytes"]
    assert facts["errors"].keys() == {"attention", "mlp", "embedding", "norm"}
    assert len(packed.names) < len(source.names)
    elements = sum(source.delta(name).numel() for name in source.names)
    assert describe(packed, source)["dense_ratio"] == 4 * elements / facts["size_bytes"] > facts["dense_ratio"]
    assert facts["remarks"] == []
    json.dumps(facts)


class Progress:
    def __init__(self, done):
        self.done = done

    def __call__(self, done, total):
        self.done.append((done, total))


def test_progress_ends_at_its_total(source, tmp_path):
    for form, settings in (("lowrank", {"rank": 2}), ("packed", {"budget": 200_000}), ("packed", {"rank": 2})):
        done = []
        pack(source, tmp_path / f"{form}{settings}", form, progress=Progress(done), **settings)
        assert done == sorted(done)
        assert done[-1] == (done[-1][0],) * 2


def test_dtypes_that_lose_nothing():
    import numpy as np

    assert narrowest(np.array([1.0, -0.5, 2.0**127], dtype=np.float32)) == "BF16"
    assert narrowest(np.array([1.001953125], dtype=np.float32)) == "F16"
    assert narrowest(np.array([0.1], dtype=np.float32)) == "F32"
    assert narrowest(np.array([1e38 * 1.1], dtype=np.float32)) == "F32"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "lowrnk"}, "form 'lowrnk' is unknown; did you mean 'lowrank'"),
        ({"form": "lowrank"}, "form lowrank got nothing to say how much is kept; expected one of --budget, --energy"),
        ({"form": "lowrank", "rank": 2, "energy": 0.9}, "got --energy, --rank to say how much"),
        ({"form": "lowrank", "density": 0.1}, "form lowrank takes no density; it takes --budget, --dtype, --energy"),
        ({"form": "sparse", "rank": 2}, "form sparse takes no rank; it takes no further option"),
        ({"form": "packed", "budget": 10, "density": 0.1}, "density and budget were given"),
        ({"form": "mask", "density": 1.5}, "density is 1.5, expected a share"),
        ({"form": "lowrank", "energy": float("nan")}, "energy is nan, expected a share"),
        ({"form": "lowrank", "rank": 0}, "rank is 0, expected a positive number"),
        ({"form": "lowrank", "budget": 0}, "budget is 0 bytes"),
        ({"form": "dense", "dtype": "int8"}, "dtype 'int8' can't store a skill"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(RecipeError, match=message):
        PackSettings(**settings)


def test_sizes():
    assert parse_size("5MB") == 5_000_000
    assert parse_size("1.5 KiB") == 1536
    assert parse_size("300000") == 300_000
    for text in ("five", "5 parsecs", "-1MB", ""):
        with pytest.raises(RecipeError, match="is not a size; expected a number with kB"):
            parse_size(text)


def test_what_a_dtype_cannot_hold(tmp_path):
    sft = tiny_checkpoint(tmp_path / "sft")
    rl = tiny_finetune(sft, tmp_path / "rl", size=1e7, names=["model.norm.weight"])
    skill = extract(rl, sft, tmp_path / "skill")
    with pytest.raises(CompatibilityError, match=r"'model\.norm\.weight' overflows F16; choose --dtype bfloat16"):
        pack(skill, tmp_path / "packed", "dense", dtype="float16")
    (tmp_path / "there").mkdir()
    with pytest.raises(OutputExistsError):
        pack(skill, tmp_path / "there", "sparse")


def test_kinds_of_modules():
    expected = {
        "model.layers.0.self_attn.q_proj.weight": "attention",
        "model.layers.0.self_attn.q_norm.weight": "norm",
        "model.layers.0.mlp.gate_proj.weight": "mlp",
        "model.layers.3.block_sparse_moe.experts.1.w1.weight": "mlp",
        "model.layers.0.post_attention_layernorm.weight": "norm",
        "model.embed_tokens.weight": "embedding",
        "transformer.wte.weight": "embedding",
        "transformer.h.0.ln_1.weight": "norm",
        "lm_head.weight": "head",
        "model.something.weight": "other",
    }
    assert {name: module_kind(name) for name in expected} == expected
