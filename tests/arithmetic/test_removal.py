"""Un-injection: exact where the original is at hand, else within two roundings, and never more than is known."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from skillgraft.arithmetic import extract, inject
from skillgraft.arithmetic.buffers import Files
from skillgraft.arithmetic.injection.removal import _Comparison
from skillgraft.checkpoint import read_layout, read_provenance
from skillgraft.errors import CompatibilityError, RecipeError
from skillgraft.support.cache import note_place, noted_place
from tests.tiny import edit_json, split_into_shards, tiny_finetune, weights

NORM = "model.norm.weight"


@pytest.fixture
def grafted(folder, tmp_path):
    """Inject into a copy of a target, so that it can be moved; return both."""

    def graft(dtype="bfloat16", skills=("a",), **options):
        target = shutil.copytree(folder / dtype, tmp_path / "target")
        pairs = [(folder / name, scale) for name, scale in dict(skills).items()] if skills != ("a",) else folder / "a"
        inject(target, pairs, tmp_path / "grafted", **options)
        return target, tmp_path / "grafted"

    return graft


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def distance(one, other):
    one, other = weights(one), weights(other)
    squares = {name: (one[name].double() - other[name].double()).square().sum().item() for name in one}
    return sum(squares.values()) ** 0.5, {name: square**0.5 for name, square in squares.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("sharded", [False, True])
def test_it_is_exact_where_the_original_is_found(folder, tmp_path, dtype, sharded):
    target = folder / dtype
    if sharded:
        target = split_into_shards(target, tmp_path / "sharded")
    inject(target, folder / "a", tmp_path / "grafted")
    report = inject(tmp_path / "grafted", folder / "a", tmp_path / "back", scale=-1)
    assert same(tmp_path / "back", target)
    assert report["removal"] == {"exact": True, "original": str(target), "left": {"a": 0.0}}
    assert not same(tmp_path / "grafted", target)
    for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "back" / name).read_bytes() == (target / name).read_bytes()
    assert read_provenance(tmp_path / "back") == read_provenance(target)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("scale", [1.0, 0.3, 4.0])
def test_it_is_within_two_roundings_elsewhere(folder, grafted, tmp_path, dtype, scale):
    target, made = grafted(dtype, scale=scale)
    target = target.rename(tmp_path / "elsewhere")
    report = inject(made, folder / "a", tmp_path / "back", scale=-scale)
    removal = report["removal"]
    assert removal["exact"] is False
    assert removal["left"] == {"a": 0.0}
    assert removal["rounding"] == f"{dtype} rounding twice"
    total, by_name = distance(tmp_path / "back", target)
    assert 0 < total <= removal["bound"]
    assert removal["bound"] < 3 * total  # stated, and no more than a few times what happened
    made_back, before = weights(tmp_path / "back"), weights(target)
    off = sum(int((made_back[name] != before[name]).sum()) for name in before)
    assert 0 < off <= removal["elements"] < sum(tensor.numel() for tensor in before.values())
    assert all(by_name[name] <= removal["tensors"][name]["bound"] for name in by_name)
    norm = sum(t.double().square().sum().item() for t in weights(made).values()) ** 0.5
    assert removal["relative"] == pytest.approx(removal["bound"] / norm, rel=1e-9)
    assert removal["relative"] < 2 * {"bfloat16": 2.0**-8, "float32": 2.0**-24}[dtype]
    assert any("cannot be used" in remark for remark in report["remarks"])


def test_the_bound_by_hand(folder, tmp_path):
    """bf16 steps by 2⁻⁸ below 1 and by 2⁻⁷ above; in units of u = 2⁻⁸, with an original of 1 − u:

    + 1.25 u is 1 + 0.25 u, stored as 1, which stands for 1 − 0.5 u to 1 + u. Less 1.25 u: 1 − 1.25 u, stored as 1 − u;
    the original lies in 1 − 1.75 u to 1 − 0.25 u, where no other number than 1 − u is: not off.
    + 1.75 u is stored as 1 too. Less 1.75 u it is stored as 1 − 2 u; the original lies in 1 − 2.25 u to 1 − 0.75 u,
    where 1 − u is as well, and up to 1.25 u away.
    """
    unit = 2.0**-8
    target = shutil.copytree(folder / "bfloat16", tmp_path / "target")
    before = torch.ones(32) - unit
    save_file({**weights(target), NORM: before.bfloat16()}, target / "model.safetensors", metadata={"format": "pt"})
    delta = torch.zeros(32)
    delta[0], delta[1] = 1.25 * unit, 1.75 * unit
    rl, flat = (shutil.copytree(folder / "sft", tmp_path / name) for name in ("rl", "flat"))
    sft = weights(folder / "sft")
    save_file({**sft, NORM: torch.ones(32)}, flat / "model.safetensors", metadata={"format": "pt"})
    save_file({**sft, NORM: torch.ones(32) + delta}, rl / "model.safetensors", metadata={"format": "pt"})
    skill = extract(rl, flat, tmp_path / "skill")
    assert torch.equal(skill.delta(NORM), delta)
    inject(target, skill, tmp_path / "grafted")
    assert weights(tmp_path / "grafted")[NORM][:2].tolist() == [1.0, 1.0]
    shutil.rmtree(target)
    removal = inject(tmp_path / "grafted", skill, tmp_path / "back", scale=-1)["removal"]
    assert weights(tmp_path / "back")[NORM][:3].tolist() == [1 - unit, 1 - 2 * unit, 1 - unit]
    assert removal["elements"] == 1
    assert removal["tensors"][NORM]["bound"] == pytest.approx(1.25 * unit, rel=1e-6)


def test_a_graft_in_float32_of_a_bf16_target(folder, grafted, tmp_path):
    target, made = grafted(dtype="bfloat16")
    shutil.rmtree(made)
    inject(target, folder / "a", made, dtype="float32")
    report = inject(made, folder / "a", tmp_path / "back", scale=-1)
    assert report["removal"]["exact"] is True
    assert same(tmp_path / "back", target)  # bf16 again, its own bytes
    assert json.loads((tmp_path / "back/config.json").read_text())["dtype"] == "bfloat16"
    report = inject(made, folder / "a", tmp_path / "wide", scale=-1, dtype="float32")
    assert report["removal"]["exact"] is True
    assert distance(tmp_path / "wide", target)[0] == 0
    assert {tensor.dtype for tensor in weights(tmp_path / "wide").values()} == {torch.float32}
    target = target.rename(tmp_path / "elsewhere")
    report = inject(made, folder / "a", tmp_path / "near", scale=-1)
    total, _ = distance(tmp_path / "near", target)
    assert 0 < total <= report["removal"]["bound"]
    assert report["removal"]["rounding"] == "float32 rounding twice"


def test_an_original_that_is_named(folder, grafted, tmp_path):
    target, made = grafted()
    target = target.rename(tmp_path / "elsewhere")
    report = inject(made, folder / "a", tmp_path / "back", scale=-1, original=target)
    assert report["removal"]["exact"] is True
    assert same(tmp_path / "back", target)
    (made / "skillgraft.json").unlink()  # the proof is the arithmetic, not the record
    report = inject(made, folder / "a", tmp_path / "again", scale=-1, original=target)
    assert report["removal"]["exact"] is True
    assert same(tmp_path / "again", target)
    with pytest.raises(CompatibilityError, match=r"with a at 0\.5 injected is not .*bit for bit"):
        inject(made, folder / "a", tmp_path / "half", scale=-0.5, original=target)
    with pytest.raises(CompatibilityError, match=r"float32 with a at 1 injected is not .*bit for bit"):
        inject(made, folder / "a", tmp_path / "other", scale=-1, original=folder / "float32")


def test_a_replaced_original_is_not_used(folder, grafted, tmp_path):
    target, made = grafted()
    kept = target.rename(tmp_path / "kept")
    tiny_finetune(kept, target, seed=9)
    report = inject(made, folder / "a", tmp_path / "back", scale=-1)
    assert report["removal"]["exact"] is False
    assert any(f"{target}, once the original, is another checkpoint by now" in remark for remark in report["remarks"])
    assert 0 < distance(tmp_path / "back", kept)[0] <= report["removal"]["bound"]


def test_a_graft_that_was_trained_on_is_not_thrown_away(folder, grafted, tmp_path):
    """Another tool may keep `skillgraft.json` beside weights that moved on."""
    _, made = grafted()
    tensors = weights(made)
    tensors[NORM] = tensors[NORM] * 2
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    report = inject(made, folder / "a", tmp_path / "back", scale=-1)
    assert report["removal"]["exact"] is False
    assert report["removal"]["bound"] is None
    assert any("no longer gives" in remark for remark in report["remarks"])
    assert weights(tmp_path / "back")[NORM].float().mean() > 1.9


def test_a_tensor_that_differs_is_not_forgotten_by_one_that_ends_later(folder, monkeypatch):
    """Tensors are compared in several threads: here another one finds a difference while the first still reads."""
    layout = read_layout(folder / "bfloat16")
    same_bytes = weights(folder / "bfloat16")[NORM].view(torch.uint8).numpy()
    with Files() as files:
        comparison = _Comparison(layout, files)
        read = files.read

        def slow_read(info, begin, into):
            monkeypatch.setattr(files, "read", read)
            comparison.write(NORM, 0, np.bitwise_not(same_bytes))
            read(info, begin, into)

        monkeypatch.setattr(files, "read", slow_read)
        comparison.write(NORM, 0, same_bytes)
    assert comparison.equal is False


def test_one_of_two_skills(folder, grafted, tmp_path):
    _, made = grafted(skills={"a": 0.5, "b": 1.0})
    report = inject(made, folder / "a", tmp_path / "back", scale=-0.5)
    removal = report["removal"]
    assert removal["exact"] is False
    assert removal["left"] == {"a": 0.0, "b": 1.0}
    assert "of what was injected there remains: b at 1" in report["remarks"]
    inject(folder / "bfloat16", folder / "b", tmp_path / "only-b", dtype="float64")
    assert 0 < distance(tmp_path / "back", tmp_path / "only-b")[0] <= removal["bound"]
    report = inject(made, [(folder / "b", 1.0), (folder / "a", 0.5)], tmp_path / "both", scale=-1)
    assert report["removal"]["exact"] is True  # in another order
    assert same(tmp_path / "both", folder / "bfloat16")


def test_another_scale(folder, grafted, tmp_path):
    target, made = grafted(scale=0.3)
    report = inject(made, folder / "a", tmp_path / "back", scale=-0.1)
    assert report["removal"]["left"] == {"a": pytest.approx(0.2)}
    assert report["removal"]["exact"] is False
    with pytest.raises(RecipeError, match=r"original: .* is not undone by this: a at 0\.3 was injected, a at -0\.1"):
        inject(made, folder / "a", tmp_path / "no", scale=-0.1, original=target)
    report = inject(made, [(folder / "a", 0.1)], tmp_path / "exact", scale=-3)  # 0.1 · 3 is 0.3 but for its last bit
    assert report["removal"]["exact"] is True
    assert same(tmp_path / "exact", target)


def test_a_method_is_undone_as_a_whole(folder, grafted, tmp_path):
    options = {"method": "ties", "parameters": {"density": 0.4}}
    pairs = [(folder / "a", 0.5), (folder / "b", 1.0)]
    target, made = grafted(skills={"a": 0.5, "b": 1.0}, **options)
    report = inject(made, pairs, tmp_path / "back", scale=-1, **options)
    assert report["removal"]["exact"] is True
    assert same(tmp_path / "back", target)
    for name, other in {"density": {**options, "parameters": {"density": 0.5}}, "method": {}}.items():
        assert "removal" not in inject(made, pairs, tmp_path / name, scale=-1, **other)


def test_more_of_a_skill_or_another_takes_nothing_out(folder, grafted, tmp_path):
    _, made = grafted()
    assert "removal" not in inject(made, folder / "a", tmp_path / "more", scale=0.5)
    assert "removal" not in inject(made, folder / "b", tmp_path / "other", scale=-1)
    assert "removal" not in inject(folder / "bfloat16", folder / "b", tmp_path / "negated", scale=-1)
    edit_json(made / "skillgraft.json", made_by={"stage": "inject", "skills": [{"scale": None}]})
    assert "removal" not in inject(made, folder / "a", tmp_path / "unknown", scale=-1)


def test_small_files_that_changed_since_are_named(folder, grafted, tmp_path):
    target, made = grafted()
    (made / "chat_template.jinja").write_text("{{ messages }}")
    report = inject(made, folder / "a", tmp_path / "back", scale=-1)
    assert any("chat_template.jinja of" in r and "the original's is taken" in r for r in report["remarks"])
    assert (tmp_path / "back/chat_template.jinja").read_bytes() == (target / "chat_template.jinja").read_bytes()


def test_the_place_is_noted_on_this_machine_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SKILLGRAFT_CACHE", str(tmp_path / "cache"))
    fingerprint = "blake3:" + "0" * 64
    assert noted_place(fingerprint) is None
    note_place(fingerprint, tmp_path)
    assert noted_place(fingerprint) == tmp_path.resolve()
    assert noted_place("blake3:../" + "0" * 64) is None
    (tmp_path / "cache" / "places" / f"{'0' * 64}.json").write_text("[")
    assert noted_place(fingerprint) is None
    monkeypatch.setenv("SKILLGRAFT_CACHE", str(tmp_path / "cache/places/x.json"))
    (tmp_path / "cache/places/x.json").write_text("")
    note_place(fingerprint, tmp_path)  # a cache that can't be written is not an error
