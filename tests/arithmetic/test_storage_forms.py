"""Every storage form as an operand: exactly target + λ · decoded, rounded once; hostile files are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from skillgraft.arithmetic import extract, inject, merge, random_vector
from skillgraft.arithmetic.buffers import Files
from skillgraft.arithmetic.tensor_sources import source_of
from skillgraft.checkpoint.header import TensorSpec, read_header
from skillgraft.checkpoint.sorted_writer import SortedWriter
from skillgraft.compression import pack
from skillgraft.errors import CheckpointError
from skillgraft.skills.forms import sparse, stored_names
from skillgraft.skills.manifest import TensorEntry
from skillgraft.skills.skill import load_skill
from tests.tiny import edit_json, tiny_checkpoint, tiny_finetune, weights

PACKS = {
    "dense": {"dtype": "bfloat16"},
    "sparse": {},
    "lowrank": {"rank": 5},
    "packed": {"rank": 6, "density": 0.2},
    "mask": {"density": 0.03},
}


@pytest.fixture(scope="module")
def packs(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs")
    skill = extract(models / "rl", models / "sft", folder / "skill")
    return {form: pack(skill, folder / form, form, **settings) for form, settings in PACKS.items()}


def decoded(skill, name):
    """The stored delta in fp64, from the stored tensors alone."""
    entry = skill.entry(name)
    if entry.rank is not None:
        a, b = skill.product(name)
        # As the engine adds them up, one direction after the other.
        total = torch.zeros(entry.shape, dtype=torch.float64)
        for r in range(entry.rank):
            total += b[:, r, None].double() * a[None, r].double()
        return total
    return skill.delta(name).double()


@pytest.mark.parametrize("form", PACKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_injecting_is_exact(packs, form, dtype, tmp_path):
    target = tiny_checkpoint(tmp_path / "target", dtype=dtype)
    skill = packs[form]
    inject(target, skill, tmp_path / "out", scale=0.75)
    before, after = weights(target), weights(tmp_path / "out")
    assert set(skill.names) <= before.keys()
    for name, tensor in before.items():
        expected = tensor.double()
        if name in skill.names:
            expected = expected + 0.75 * decoded(skill, name)
        assert torch.equal(after[name], expected.to(dtype)), name


def test_forms_mix_in_a_merge(packs, models, tmp_path):
    operands = [{"skill": str(packs[form].path), "weight": 0.5} for form in ("sparse", "packed")]
    recipe = {"method": "task_arithmetic", "base": str(models / "target"), "operands": operands}
    merge(recipe, tmp_path / "one", threads=1)
    merge(recipe, tmp_path / "two", threads=3)
    before, one, two = (weights(path) for path in (models / "target", tmp_path / "one", tmp_path / "two"))
    for name, tensor in before.items():
        change = sum(0.5 * decoded(packs[form], name) for form in ("sparse", "packed") if name in packs[form].names)
        assert torch.equal(one[name], (tensor.double() + change).float())
        assert torch.equal(one[name], two[name])


@pytest.mark.parametrize("density", [0.001, 0.03, 0.2])
@pytest.mark.parametrize("code", ["F32", "BF16", "F16"])
def test_any_part_of_a_sparse_tensor_is_read(density, code, tmp_path):
    elements = 3 * sparse.BLOCK + 1000
    rng = np.random.default_rng(0)
    kept = rng.random(elements) < density
    values = rng.integers(1, 1000, size=elements).astype(np.uint32 if code == "F32" else np.uint16)
    made = sparse.encode_sparse(values, kept)
    entry = TensorEntry(
        form="sparse", shape=(elements,), dtype=code, norm=1.0, count=len(made.values), coding=made.coding
    )
    file = tmp_path / "x.safetensors"
    with SortedWriter(file, {}) as writer:
        arrays = (made.offsets, made.index, made.values)
        for spec, array in zip(entry.specs("w"), arrays, strict=True):
            writer.add(spec, array.view(np.uint8).data)
    stored = {info.name: info for info in read_header(file).tensors}
    source = source_of("w", entry, [stored[name] for name in stored_names("w", "sparse")])
    expected = np.where(kept, values, 0).astype(values.dtype)
    ranges = [(0, elements), (0, 1), (elements - 1, elements), (sparse.BLOCK, 2 * sparse.BLOCK)]
    ranges += [(low, low + size) for low, size in rng.integers(1, elements // 2, (50, 2))]
    with Files() as files:
        for start, stop in ranges:
            raw = np.full((stop - start) * values.itemsize + 5, 7, dtype=np.uint8)
            source.read(int(start), int(stop), files, raw)
            assert np.array_equal(raw[:-5].view(values.dtype), expected[start:stop])
            assert (raw[-5:] == 7).all()


@pytest.fixture
def copied_packs(packs, tmp_path):
    return {form: shutil.copytree(packs[form].path, tmp_path / form) for form in ("sparse", "packed", "mask")}


def change(path, suffix, edit):
    """Apply `edit` to the first stored tensor whose name ends so; return its parameter's name."""
    tensors = load_file(path / "skill.safetensors")
    name = next(key for key in sorted(tensors) if key.endswith(suffix) and tensors[key].numel() > 1)
    tensors[name] = edit(tensors[name].clone())
    save_file(tensors, path / "skill.safetensors")
    return name.removesuffix(suffix)


def beyond(places):
    places[-1] = 65535
    return places


def unsorted(places):
    return places.to(torch.int32).flip(0).to(places.dtype)


def wrong_end(offsets):
    offsets[-1] = 1 << 40
    return offsets


def negative(offsets):
    offsets[0] = -(1 << 40)
    return offsets


@pytest.mark.parametrize("edit", [beyond, unsorted])
def test_hostile_places(copied_packs, edit):
    path = copied_packs["mask"]
    name = change(path, ".sparse_index", edit)
    with pytest.raises(CheckpointError, match=f"the delta of '{name}' is damaged: its places do not ascend or lie"):
        load_skill(path)


@pytest.mark.parametrize("edit", [wrong_end, negative])
def test_hostile_offsets(copied_packs, edit):
    path = copied_packs["sparse"]
    name = change(path, ".sparse_offsets", edit)
    with pytest.raises(CheckpointError, match=f"the delta of '{name}' is damaged: its offsets do not ascend from 0"):
        load_skill(path)


def test_hostile_scales(copied_packs):
    path = copied_packs["packed"]
    name = change(path, ".packed_b_scales", lambda scales: scales * float("nan"))
    with pytest.raises(CheckpointError, match=f"the delta of '{name}' is damaged: a scale is NaN, infinite or negat"):
        load_skill(path)


@pytest.mark.parametrize(
    ("form", "suffix", "edit"),
    [
        ("mask", ".sparse_index", beyond),
        ("sparse", ".sparse_offsets", wrong_end),
        ("packed", ".packed_a_scales", lambda scales: -scales),
    ],
)
def test_a_file_that_turns_hostile_after_loading(copied_packs, models, tmp_path, form, suffix, edit):
    path = copied_packs[form]
    skill = load_skill(path)
    name = change(path, suffix, edit)
    stored = {info.name: info for info in read_header(skill.weights_file).tensors}
    source = source_of(name, skill.entry(name), [stored[key] for key in stored_names(name, skill.entry(name).form)])
    with Files() as files, pytest.raises(CheckpointError, match=f"the delta of '{name}' is damaged"):
        source.read(0, source.elements, files, np.empty(source.elements * 8, dtype=np.uint8))


@pytest.mark.parametrize(
    ("form", "key", "value", "message"),
    [
        ("sparse", "count", 1, r"is F16 of shape \[\d+\], expected F16 of \[1\]"),
        ("sparse", "count", 10**9, "more values than elements"),
        ("sparse", "coding", None, "sparse has both"),
        ("sparse", "coding", "places", "expected U16"),
        ("packed", "bits", {"8": 1}, "packed has the widths of its"),
        ("packed", "bits", {"16": 6}, "Input should be '8', '4', '3' or '2'"),
        ("packed", "bits", None, "packed has the widths of its"),
        ("packed", "dtype", "F32", "expected scales in BF16"),
        ("packed", "shape", [7], "expected two dimensions"),
        ("packed", "rank", 10**9, "packed has the widths of its"),
    ],
)
def test_a_manifest_that_does_not_fit(copied_packs, form, key, value, message):
    path = copied_packs[form]
    entries = json.loads((path / "skill.json").read_text())["tensors"]
    name = next(name for name, entry in entries.items() if entry["form"] == form)
    entries[name][key] = value
    edit_json(path / "skill.json", tensors=entries)
    with pytest.raises(CheckpointError, match=message):
        load_skill(path)


def test_a_control_for_every_form(packs, tmp_path):
    for form, skill in packs.items():
        control = random_vector(skill, tmp_path / form, seed=0)
        assert control.names == skill.names
        for name in skill.names:
            assert control.norm(name) == pytest.approx(skill.norm(name), rel=1e-6)
            assert control.delta(name).norm().item() == pytest.approx(skill.norm(name), rel=1e-4)


def test_rl_in_bf16_that_changed_a_minority(tmp_path):
    """Sparse is bit-exact: what it injects is the RL model, bit for bit, as the dense skill's is."""
    sft = tiny_checkpoint(tmp_path / "sft", dtype=torch.bfloat16)
    rl = tiny_finetune(sft, tmp_path / "rl", size=2e-5)
    skill = extract(rl, sft, tmp_path / "skill")
    packed = pack(skill, tmp_path / "packed", "sparse")
    changed = sum(packed.entry(name).count for name in packed.names)
    assert 0 < changed < 0.5 * sum(packed.entry(name).elements for name in packed.names)
    assert all(torch.equal(packed.delta(name), skill.delta(name)) for name in skill.names)
    assert packed.manifest.reconstruction_error == 0.0
    inject(sft, packed, tmp_path / "again")
    want, got = weights(rl), weights(tmp_path / "again")
    assert all(torch.equal(got[name].view(torch.int16), want[name].view(torch.int16)) for name in want)
    assert packed.weights_file.stat().st_size < 0.5 * skill.weights_file.stat().st_size


def test_a_sorted_file_is_read_by_the_library(tmp_path):
    file = tmp_path / "x.safetensors"
    with SortedWriter(file, {"format": "pt"}) as writer:
        writer.add(TensorSpec("bytes", "U8", (3,)), np.array([1, 2, 3], dtype=np.uint8).data)
        writer.add(TensorSpec("wide", "F32", (2,)), np.array([1.5, 2.5], dtype=np.float32).view(np.uint8).data)
        writer.add(TensorSpec("offsets", "I64", (1,)), np.array([-1]).view(np.uint8).data)
        with pytest.raises(CheckpointError, match="'short': got 1 bytes, its shape takes 2"):
            writer.add(TensorSpec("short", "U16", (1,)), np.zeros(1, dtype=np.uint8).data)
    assert {name: tensor.tolist() for name, tensor in load_file(file).items()} == {
        "bytes": [1, 2, 3],
        "wide": [1.5, 2.5],
        "offsets": [-1],
    }
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]
