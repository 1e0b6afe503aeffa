"""Every measure against plain fp64 arithmetic on whole tensors, and every operand that must be refused."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import save_file

from skillgraft.arithmetic import extract
from skillgraft.arithmetic import tiles as tiles_module
from skillgraft.errors import CheckpointError, CompatibilityError, MissingPathError, RecipeError
from skillgraft.geometry import compare
from skillgraft.geometry.operands import parse_operands
from skillgraft.geometry.plan import plan_comparison
from skillgraft.skills.library import add_skill
from tests.tiny import edit_json, split_into_shards, tiny_checkpoint, tiny_finetune, weights

NORM, EMBEDDING, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
LABELS = ("a", "b", "rl", "adapter")


def operands(zoo):
    return [f"sft/a={zoo / 'a'}", f"sft/b={zoo / 'b'}", f"rl={zoo / 'rl'}:{zoo / 'a'}", f"adapter={zoo / 'adapter'}"]


@pytest.fixture(scope="module")
def facts(zoo):
    return compare(operands(zoo), zoo / "base", threads=2)


def flat(vector, names=None):
    return torch.cat([vector[name].reshape(-1) for name in (names or vector)])


def change(path, **tensors):
    kept = {name: tensor for name, tensor in {**weights(path), **tensors}.items() if tensor is not None}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})


def bf16_half_spacing(base):
    """Half the distance of bf16 numbers at each element, by taking the next one."""
    stored = base.abs().to(torch.bfloat16)
    return ((stored.view(torch.int16) + 1).view(torch.bfloat16).double() - stored.double()) / 2


@pytest.mark.parametrize("place", range(4))
def test_vectors(facts, vectors, place):
    label = LABELS[place]
    vector, base = flat(vectors[label]), flat(vectors["base"])
    found = facts["vectors"][place]
    assert found["label"] == label
    assert found["norm"] == pytest.approx(vector.norm().item(), rel=1e-12)
    assert found["relative_norm"] == pytest.approx((vector.norm() / base.norm()).item(), rel=1e-12)
    assert found["zeros"] == pytest.approx((vector == 0).double().mean().item(), abs=1e-12)
    below = (vector != 0) & (vector.abs() < bf16_half_spacing(base))
    assert found["below_bf16"] == pytest.approx(below.double().mean().item(), abs=1e-12)


@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 2), (1, 3), (2, 3)])
def test_pairs(facts, vectors, i, j):
    pairs = {(pair["one"], pair["other"]): pair for pair in facts["pairs"]}
    found = pairs[LABELS[i], LABELS[j]]
    one, other = vectors[LABELS[i]], vectors[LABELS[j]]
    a, b = flat(one), flat(other)
    norms = (a.norm() * b.norm()).item()
    assert found["cosine"] == pytest.approx((a @ b).item() / norms, rel=1e-9)
    same, opposite = ((a * b) > 0).sum().item(), ((a * b) < 0).sum().item()
    assert found["same_sign"] == same / (same + opposite)
    assert found["same_sign_of_all"] == same / len(a)
    assert found["overlap"] == (same + opposite) / ((a != 0) | (b != 0)).sum().item()
    flips = math.sqrt((a.square() @ b.square()).item()) / norms
    isotropic = sum((one[n].square().sum() * other[n].square().sum() / one[n].numel()).item() for n in one)
    assert found["chance_sd"] == pytest.approx(
        {"sign_flips": flips, "isotropic": math.sqrt(isotropic) / norms}, rel=1e-12
    )
    assert found["z"] == pytest.approx(found["cosine"] / max(found["chance_sd"].values()), rel=1e-12)
    squares = []
    for name in one:
        x, y = one[name].reshape(-1), other[name].reshape(-1)
        variance = max((x.square() @ y.square()).item(), (x.square().sum() * y.square().sum()).item() / len(x))
        if variance:
            squares.append((x @ y).item() ** 2 / variance)
    assert found["rms_z"] == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=1e-9)


def test_parts_are_those_of_their_tensors(facts, vectors):
    a, b = vectors["a"], vectors["b"]
    queries = [name for name in a if "q_proj" in name]
    layer = [name for name in a if ".layers.1." in name]
    norms = [name for name in a if ".layers.1." in name and "norm" in name]

    def cosine(names):
        return torch.nn.functional.cosine_similarity(flat(a, names), flat(b, names), dim=0).item()

    assert facts["kinds"]["q"]["pairs"][0]["cosine"] == pytest.approx(cosine(queries), rel=1e-9)
    assert facts["layers"]["layer 1"]["pairs"][0]["cosine"] == pytest.approx(cosine(layer), rel=1e-9)
    cell = next(cell for cell in facts["cells"] if (cell["layer"], cell["kind"]) == (1, "norm"))
    assert cell["pairs"][0]["cosine"] == pytest.approx(cosine(norms), rel=1e-9)
    assert facts["tensors"][Q_PROJ]["pairs"][0]["cosine"] == pytest.approx(cosine([Q_PROJ]), rel=1e-9)
    assert facts["tensors"][NORM]["pairs"][2]["cosine"] is None  # the adapter leaves it alone
    assert set(facts["kinds"]) == {"q", "k", "v", "o", "gate", "up", "down", "norm", "embedding"}
    assert set(facts["tensors"]) == set(a)


def test_groups_stand_side_by_side(facts):
    titles = {group["groups"]: group["pairs"] for group in facts["groups"]}
    assert titles == {"sft – sft": 1, "sft – skill": 2, "sft – adapter": 2, "skill – adapter": 1}
    cosines = [pair["cosine"] for pair in facts["pairs"] if pair["groups"] == "sft – skill"]
    group = next(group for group in facts["groups"] if group["groups"] == "sft – skill")
    mean = pytest.approx(sum(cosines) / 2)
    assert group["cosine"] == {"mean": mean, "least": min(cosines), "most": max(cosines)}


def test_threads_tiles_and_shards_change_no_bit(facts, zoo, tmp_path, monkeypatch):
    def measured(found):
        return json.dumps({key: found[key] for key in ("pairs", "kinds", "tensors")})

    assert measured(compare(operands(zoo), zoo / "base", threads=1)) == measured(facts)
    for name in ("base", "a", "b"):
        split_into_shards(zoo / name, tmp_path / name)
    sharded = [f"sft/a={tmp_path / 'a'}", f"sft/b={tmp_path / 'b'}", *operands(zoo)[2:]]
    found = compare(sharded, tmp_path / "base", threads=3)
    assert found["kinds"] == facts["kinds"]
    assert {name: found["tensors"][name] for name in facts["tensors"]} == facts["tensors"]
    monkeypatch.setattr(tiles_module, "TILE_ELEMENTS", 1000)
    for one, other in zip(compare(operands(zoo), zoo / "base")["pairs"], facts["pairs"], strict=True):
        assert one["cosine"] == pytest.approx(other["cosine"], rel=1e-10)
        assert one["same_sign"] == other["same_sign"]


def test_a_skill_is_the_difference_that_it_stores(zoo, tmp_path):
    extract(zoo / "rl", zoo / "a", tmp_path / "again")
    found = compare([f"one={zoo / 'skill'}", f"two={zoo / 'rl'}:{zoo / 'a'}"], zoo / "base")
    assert found["pairs"][0]["cosine"] == pytest.approx(1, abs=1e-12)
    assert found["pairs"][0]["sentence"].startswith("nearly parallel, not by chance: cosine +1.000")
    alone = compare([f"one={zoo / 'skill'}", f"two={tmp_path / 'again'}"])
    assert "relative_norm" not in alone["vectors"][0]
    assert alone["vectors"][0]["norm"] == found["vectors"][0]["norm"]
    assert alone["pairs"][0]["cosine"] == pytest.approx(1, abs=1e-12)
    difference = compare([f"{zoo / 'rl'}:{zoo / 'a'}", str(zoo / "skill")])
    assert [vector["label"] for vector in difference["vectors"]] == ["rl:a", "skill"]
    assert difference["base"] is None


def test_opposite_vectors(zoo):
    pair = compare([f"there={zoo / 'a'}:{zoo / 'b'}", f"back={zoo / 'b'}:{zoo / 'a'}"])["pairs"][0]
    assert pair["cosine"] == pytest.approx(-1, abs=1e-12)
    assert pair["same_sign"] == 0
    assert "nearly opposite, not by chance" in pair["sentence"]


def test_a_padded_vocabulary_counts_as_unchanged(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", seed=1, tie=False, vocab_size=336)
    other = tiny_finetune(base, tmp_path / "other", seed=2, size=0.1)
    smaller = tiny_checkpoint(tmp_path / "smaller", seed=1, tie=False)
    cut = {n: (t[:320] if t.shape[0] == 336 else t) + 0.25 for n, t in weights(base).items()}
    save_file(cut, smaller / "model.safetensors", metadata={"format": "pt"})
    found = compare([str(smaller), str(other)], base, with_spectra=True)
    assert any("padded to other numbers of rows" in remark for remark in found["remarks"])
    row = found["tensors"][EMBEDDING]["vectors"][0]
    assert row["zeros"] == 16 / 336
    assert row["norm"] == pytest.approx(0.25 * math.sqrt(320 * 32), rel=1e-6)
    assert row["spectrum"]["stable_rank"] == pytest.approx(1)  # the same number in every row that it has
    assert found["tensors"][EMBEDDING]["vectors"][1]["zeros"] < 0.01


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_every_input_dtype(tmp_path, dtype):
    base = tiny_checkpoint(tmp_path / "base", dtype=dtype)
    one, two = (tiny_finetune(base, tmp_path / name, seed=seed, size=0.05) for seed, name in ((1, "one"), (2, "two")))
    b, x, y = (flat({n: t.double() for n, t in weights(path).items()}) for path in (base, one, two))
    expected = torch.nn.functional.cosine_similarity(x - b, y - b, dim=0).item()
    assert compare([str(one), str(two)], base)["pairs"][0]["cosine"] == pytest.approx(expected, rel=1e-9)


def test_missing_tensors_are_refused_or_count_as_unchanged(zoo, tmp_path):
    shutil.copytree(zoo / "b", tmp_path / "b")
    change(tmp_path / "b", **{NORM: None})
    given = [str(zoo / "a"), str(tmp_path / "b")]
    with pytest.raises(CompatibilityError, match=r"has no tensor 'model\.norm\.weight'.*--allow missing"):
        compare(given, zoo / "base")
    found = compare(given, zoo / "base", allow=["missing"])
    assert found["tensors"][NORM]["vectors"][1] == {
        "norm": 0.0,
        "zeros": 1.0,
        "relative_norm": 0.0,
        "below_bf16": 0.0,
    }
    assert any("allowed explicitly" in remark for remark in found["remarks"])


def test_shapes_must_agree(zoo, tmp_path):
    tiny_checkpoint(tmp_path / "wide", intermediate_size=128, dtype=torch.bfloat16)
    with pytest.raises(CompatibilityError, match=r"has shape \[32, 128\] in .*wide and \[32, 64\]"):
        compare([str(zoo / "a"), str(tmp_path / "wide")], zoo / "base")
    adapter = shutil.copytree(zoo / "adapter", tmp_path / "adapter")
    stem = f"base_model.model.{Q_PROJ.removesuffix('.weight')}"
    tensors = weights(adapter) | {f"{stem}.lora_B.weight": torch.ones(40, 2)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(CompatibilityError, match=r"'model\.layers\.0.*shape \[40, 32\].*\[32, 32\]"):
        compare([f"one={zoo / 'adapter'}", f"two={adapter}"])
    with pytest.raises(CompatibilityError, match=r"has shape \[40, 32\], expected \[32, 32\]"):
        compare([f"one={zoo / 'adapter'}", f"two={adapter}"], zoo / "base")


def test_vectors_without_a_tensor_in_common(zoo, tmp_path):
    for name, module in (("one", "q_proj"), ("two", "k_proj")):
        shutil.copytree(zoo / "adapter", tmp_path / name)
        kept = {key: tensor for key, tensor in weights(zoo / "adapter").items() if module in key}
        save_file(kept, tmp_path / name / "adapter_model.safetensors")
    with pytest.raises(CompatibilityError, match="one, two change no tensor in common"):
        compare([str(tmp_path / "one"), str(tmp_path / "two")], zoo / "base")


def test_skills_of_other_bases(zoo, tmp_path):
    other = shutil.copytree(zoo / "skill", tmp_path / "other")
    manifest = json.loads((other / "skill.json").read_text())
    one = shutil.copytree(zoo / "skill", tmp_path / "one")
    for skill, digit in ((one, "1"), (other, "0")):
        edit_json(skill / "skill.json", base={"id": None, "fingerprint": "blake3:" + digit * 64})
    pair = [str(one), str(other)]
    with pytest.raises(
        CompatibilityError,
        match=r"skills of another base: blake3:1+ and blake3:0+; correlation .*: 1\.000.*--allow base",
    ):
        compare(pair)
    assert compare(pair, allow=["base"])["pairs"][0]["cosine"] == pytest.approx(1)
    for skill in (one, other):
        edit_json(skill / "skill.json", base={**json.loads((skill / "skill.json").read_text())["base"], "id": "x/y"})
    assert "same base x/y in two copies" in compare(pair)["remarks"][0]
    edit_json(other / "skill.json", base=manifest["base"])  # not known, but the SFT model is the same
    assert compare(pair)["remarks"] == []
    edit_json(other / "skill.json", tokenizer="blake3:other")
    with pytest.raises(CompatibilityError, match=r"are skills of another token map: .* and blake3:other"):
        compare(pair)


def test_skills_whose_base_is_not_recorded(zoo, tmp_path):
    """Two RLs on two SFTs of one base: their sketches tell, as they do on a target."""
    second = extract(tiny_finetune(zoo / "b", tmp_path / "rl", seed=4, size=5e-4), zoo / "b", tmp_path / "second")
    found = compare([str(zoo / "skill"), str(second.path)])
    assert abs(found["pairs"][0]["cosine"]) < 0.1
    (remark,) = found["remarks"]
    assert (
        f"the base of {zoo / 'skill'} and {second.path} is not recorded: one base recognised by the weights" in remark
    )
    foreign = tiny_checkpoint(tmp_path / "foreign", seed=9, dtype=torch.bfloat16)
    other = extract(tiny_finetune(foreign, tmp_path / "foreign-rl", seed=5), foreign, tmp_path / "other")
    with pytest.raises(
        CompatibilityError, match=r"is not recorded, and they look like skills of two bases.*--base BASE.*--allow base"
    ):
        compare([str(zoo / "skill"), str(other.path)])
    edit_json(other.path / "skill.json", sketch={})
    with pytest.raises(CompatibilityError, match=r"no matrix of their weights sketches could be compared.*--base BASE"):
        compare([str(zoo / "skill"), str(other.path)])


def test_names_of_skills(zoo, tmp_path, monkeypatch):
    add_skill(zoo / "skill", "mine")
    by_name = compare([f"sft={zoo / 'a'}", "mine", f"rl/again={zoo / 'skill'}"], zoo / "base")
    by_path = compare([f"sft={zoo / 'a'}", f"mine={zoo / 'skill'}", f"rl/again={zoo / 'skill'}"], zoo / "base")
    assert [vector["label"] for vector in by_name["vectors"]] == ["sft", "mine", "again"]
    assert by_name["pairs"] == by_path["pairs"]
    assert compare(["mine", "x/y=mine", str(zoo / "skill")])["vectors"][1]["group"] == "x"
    shipped = plan_comparison(parse_operands(["squad-recall", "squad-answer-format"]), None).vectors
    assert [(vector.label, vector.kind) for vector in shipped] == [
        ("squad-recall", "skill"),
        ("squad-answer-format", "skill"),
    ]
    shutil.copytree(zoo / "b", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    both = compare(["mine", str(zoo / "skill")], zoo / "base")
    assert both["vectors"][0]["kind"] == "checkpoint"
    assert "'mine' is a directory here and a skill of the library; the directory was taken" in both["remarks"]
    with pytest.raises(MissingPathError, match="mime: no such directory"):
        compare(["mime", "mine"], zoo / "base")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["base", "a"])
def test_not_finite(zoo, tmp_path, value, where):
    for name in ("base", "a", "b"):
        shutil.copytree(zoo / name, tmp_path / name)
    bad = torch.ones(32, dtype=torch.bfloat16)
    bad[3] = value
    change(tmp_path / where, **{NORM: bad})
    with pytest.raises(
        CompatibilityError, match=rf"{where}: tensor 'model\.norm\.weight' holds NaN or infinity \(1 of"
    ):
        compare([str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "base")


def test_squares_that_overflow(tmp_path):
    base = tiny_checkpoint(tmp_path / "base", dtype=torch.float64)
    one = tiny_finetune(base, tmp_path / "one")
    two = tiny_finetune(base, tmp_path / "two", seed=2)
    change(one, **{NORM: torch.full((32,), 1e200, dtype=torch.float64)})
    with pytest.raises(CompatibilityError, match="squares of its elements overflow fp64"):
        compare([str(one), str(two)], base)


def test_operands_that_say_nothing(zoo, tmp_path):
    same = shutil.copytree(zoo / "base", tmp_path / "same")
    for given, base, kind, message in [
        ([str(zoo / "a")], zoo / "base", RecipeError, "compare got only .*expected two operands at least"),
        ([], zoo / "base", RecipeError, "compare got nothing"),
        ([str(zoo / "a"), str(zoo / "b")], None, RecipeError, "is a checkpoint and no base was given; expected --base"),
        ([str(zoo / "a"), str(zoo / "a")], zoo / "base", RecipeError, "two operands are called 'a'.*NAME="),
        ([f"x={zoo / 'a'}", f"x={zoo / 'b'}"], zoo / "base", RecipeError, "two operands are called 'x'"),
        ([f"={zoo / 'a'}", str(zoo / "b")], zoo / "base", RecipeError, "has an empty label"),
        ([f"x/={zoo / 'a'}", str(zoo / "b")], zoo / "base", RecipeError, "label '' is empty"),
        ([f"a\x1b[31m={zoo / 'a'}", str(zoo / "b")], zoo / "base", RecipeError, "cannot be printed"),
        ([f"{'x' * 61}={zoo / 'a'}", str(zoo / "b")], zoo / "base", RecipeError, "longer than 60"),
        (["x=", str(zoo / "b")], zoo / "base", RecipeError, "names no directory"),
        ([f"x={zoo / 'a'}:", str(zoo / "b")], zoo / "base", RecipeError, "lacks one side of the difference"),
        ([str(zoo / "nowhere"), str(zoo / "b")], zoo / "base", MissingPathError, "nowhere: no such directory"),
        ([f"{zoo / 'a'}:{zoo / 'nowhere'}", str(zoo / "b")], None, MissingPathError, "nowhere: no such directory"),
        ([str(zoo / "a"), str(zoo / "b")], zoo / "nowhere", MissingPathError, "nowhere: no such directory"),
        ([str(zoo / "base"), str(zoo / "b")], zoo / "base", RecipeError, "minus itself is zero"),
        ([f"{zoo / 'a'}:{zoo / 'a'}", str(zoo / "b")], zoo / "base", RecipeError, "minus itself is zero"),
        ([str(same), str(zoo / "b")], zoo / "base", CompatibilityError, "same equals .*base in every tensor"),
    ]:
        with pytest.raises(kind, match=message):
            compare(given, base)
    with pytest.raises(RecipeError, match=r"--allow shapes.* available: architecture, base"):
        compare(operands(zoo), zoo / "base", allow=["shapes"])
    with pytest.raises(RecipeError, match="rank is 0"):
        compare(operands(zoo), zoo / "base", rank=0)


def test_quantised_weights_are_refused(zoo, tmp_path):
    quantised = shutil.copytree(zoo / "a", tmp_path / "quantised")
    edit_json(quantised / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(CheckpointError, match="the weights are quantised"):
        compare([str(quantised), str(zoo / "b")], zoo / "base")


def test_a_directory_whose_name_holds_signs(zoo, tmp_path):
    odd = shutil.copytree(zoo / "a", tmp_path / "lr=3e-4:step")
    found = compare([str(odd), f"b={zoo / 'b'}"], zoo / "base")
    assert [vector["label"] for vector in found["vectors"]] == ["lr=3e-4:step", "b"]
    assert found["vectors"][0]["kind"] == "checkpoint"
