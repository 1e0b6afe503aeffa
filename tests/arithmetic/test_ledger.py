"""What a grafted checkpoint's provenance keeps of several injections, and what is believed of it."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import save_file

from skillgraft.arithmetic import inject
from skillgraft.arithmetic.injection.inject import inject_scales
from skillgraft.checkpoint import fingerprint_checkpoint, read_provenance
from skillgraft.checkpoint.verify import verify_checkpoint
from skillgraft.compression import pack
from tests.arithmetic.test_removal import NORM, distance, same
from tests.tiny import edit_json, tiny_finetune, weights


@pytest.fixture(params=["bfloat16", "float32"])
def target(request, folder, tmp_path):
    """A copy that can be moved."""
    return shutil.copytree(folder / request.param, tmp_path / "target")


def change(directory, name=NORM, by=None):
    tensors = weights(directory)
    tensors[name] = by(tensors[name]) if by is not None else tensors[name] + 0.05
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def balance(directory):
    return read_provenance(directory)["made_by"]["balance"]


def held(directory):
    return {skill["name"]: skill["scale"] for skill in balance(directory)["held"]["skills"]}


def negate_first(tensor):
    flipped = tensor.clone()
    flipped[0] = -flipped[0]
    return flipped


@pytest.mark.parametrize("by", [None, negate_first, torch.Tensor.clone])
def test_no_bound_is_stated_for_a_checkpoint_that_changed(folder, target, tmp_path, by):
    """By noise, in a way that keeps the norm, or merely saved anew: what can't be told from a change counts as one."""
    inject(target, folder / "a", tmp_path / "grafted")
    assert balance(tmp_path / "grafted")["weights"] == fingerprint_checkpoint(tmp_path / "grafted")
    change(tmp_path / "grafted", by=by)
    target.rename(tmp_path / "elsewhere")
    report = inject(tmp_path / "grafted", folder / "a", tmp_path / "back", scale=-1)
    assert report["removal"] == {"exact": False, "original": None, "left": {"a": 0.0}, "bound": None}
    said = "grafted changed, or was saved anew, since the injection wrote it: how far the result is from the original"
    assert any(said in remark for remark in report["remarks"])
    assert balance(tmp_path / "back")["rounding"] is None


def test_a_skill_goes_in_again_after_it_was_taken_out(folder, target, tmp_path):
    first = inject(target, folder / "a", tmp_path / "grafted")
    report = inject(tmp_path / "grafted", folder / "a", tmp_path / "back", scale=-1)
    assert report["removal"]["exact"] is True
    assert not (tmp_path / "back/skillgraft.json").exists()  # nor has the original any
    again = inject(tmp_path / "back", folder / "a", tmp_path / "again")
    assert again.keys() == first.keys()
    assert again["remarks"] == first["remarks"]
    assert again["survived_rounding"] == first["survived_rounding"]
    assert same(tmp_path / "again", tmp_path / "grafted")
    target.rename(tmp_path / "elsewhere")
    report = inject(tmp_path / "grafted", folder / "a", tmp_path / "near", scale=-1)
    assert report["removal"]["exact"] is False
    assert held(tmp_path / "near") == {}
    assert "removal" not in inject(tmp_path / "near", folder / "a", tmp_path / "third")
    assert held(tmp_path / "third") == {"a": 1.0}


def test_what_was_there_before_has_its_own_provenance(folder, target, tmp_path):
    inject(target, folder / "a", tmp_path / "one")
    inject(tmp_path / "one", folder / "b", tmp_path / "two", scale=0.5)
    assert held(tmp_path / "two") == {"a": 1.0, "b": 0.5}
    report = inject(tmp_path / "two", folder / "b", tmp_path / "back", scale=-0.5)
    assert report["removal"] == {"exact": True, "original": str(tmp_path / "one"), "left": {"a": 1.0, "b": 0.0}}
    found, expected = (read_provenance(tmp_path / name) for name in ("back", "one"))
    expected["made_by"]["balance"]["weights"] = fingerprint_checkpoint(tmp_path / "back")
    assert found == expected
    assert not [f for f in verify_checkpoint(tmp_path / "back").findings if f.severity != "note"]
    assert inject(tmp_path / "back", folder / "a", tmp_path / "out", scale=-1)["removal"]["exact"] is True
    assert same(tmp_path / "out", target)
    moved = target.rename(tmp_path / "elsewhere")
    removal = inject(tmp_path / "back", folder / "a", tmp_path / "near", scale=-1)["removal"]
    assert 0 < distance(tmp_path / "near", moved)[0] <= removal["bound"]
    other = "float32" if "bfloat16" in removal["rounding"] else "bfloat16"
    inject(tmp_path / "two", folder / "b", tmp_path / "cast", scale=-0.5, dtype=other)
    assert inject(tmp_path / "cast", folder / "a", tmp_path / "far", scale=-1)["removal"]["bound"] is None


STEPS = {
    "one by one": ([("a", 1.0), ("b", 1.0)], [("a", -1.0), ("b", -1.0)]),
    "in halves": ([("a", 1.0)], [("a", -0.5), ("a", -0.5)]),
    "put in one after the other": ([("a", 0.7), ("b", 1.0), ("a", 0.3)], [("b", -1.0), ("a", -1.0)]),
}


@pytest.fixture(params=STEPS)
def emptied(request, folder, target, tmp_path):
    """Return the checkpoint before the last step out, the skill and scale of that step, and the number of steps."""
    into, out = STEPS[request.param]
    steps = [*into, *out[:-1]]
    if request.param == "one by one":
        inject(target, [(folder / name, scale) for name, scale in into], tmp_path / "both")
        place, steps, count = tmp_path / "both", out[:-1], 1
    else:
        place, count = target, 0
    for name, scale in steps:
        count += 1
        inject(place, folder / name, tmp_path / f"step-{count}", scale=scale)
        place = tmp_path / f"step-{count}"
    return place, folder / out[-1][0], out[-1][1], count + 1


def test_the_rest_leads_back_to_the_original(folder, target, tmp_path, emptied):
    place, skill, scale, _ = emptied
    report = inject(place, skill, tmp_path / "back", scale=scale)
    assert report["removal"]["exact"] is True
    assert report["removal"]["original"] == str(target)
    assert not any(report["removal"]["left"].values())
    assert same(tmp_path / "back", target)


def test_the_rest_is_bounded_by_the_sum_of_the_roundings(folder, target, tmp_path, emptied):
    place, skill, scale, count = emptied
    moved = target.rename(tmp_path / "elsewhere")
    removal = inject(place, skill, tmp_path / "back", scale=scale)["removal"]
    assert removal["exact"] is False
    assert removal["rounding"].endswith(f"rounding {count} times")
    total, _ = distance(tmp_path / "back", moved)
    assert 0 < total <= removal["bound"] < 6 * total
    norm = sum(t.double().square().sum().item() for t in weights(place).values()) ** 0.5
    assert removal["relative"] == pytest.approx(removal["bound"] / norm, rel=1e-9)
    assert balance(tmp_path / "back")["steps"] == count
    report = inject(place, skill, tmp_path / "named", scale=scale, original=moved)
    assert report["removal"]["exact"] is True
    assert same(tmp_path / "named", moved)


def test_the_rest_of_a_checkpoint_that_changed_is_not_the_original(folder, target, tmp_path, emptied):
    place, skill, scale, _ = emptied
    change(place)
    report = inject(place, skill, tmp_path / "back", scale=scale)
    assert report["removal"]["exact"] is False
    assert report["removal"]["bound"] is None
    assert weights(tmp_path / "back")[NORM].float().mean() > 1.04


def test_the_recorded_rounding_is_what_was_lost(folder, target, tmp_path):
    inject(target, folder / "a", tmp_path / "one", scale=0.3)
    inject(tmp_path / "one", folder / "b", tmp_path / "two", scale=0.7)
    lost = []
    for before, skill, scale, after in ((target, "a", 0.3, "one"), (tmp_path / "one", "b", 0.7, "two")):
        inject(before, folder / skill, tmp_path / f"exact-{after}", scale=scale, dtype="float64")
        lost.append(distance(tmp_path / after, tmp_path / f"exact-{after}")[0])
    assert balance(tmp_path / "one")["rounding"] == pytest.approx(lost[0], rel=1e-5)
    assert balance(tmp_path / "two")["rounding"] == pytest.approx(sum(lost), rel=1e-5)
    assert balance(tmp_path / "two")["rounding"] > sum(lost)
    assert balance(tmp_path / "exact-one")["rounding"] is None  # fp64 does not see what it loses itself
    inject(tmp_path / "exact-one", folder / "a", tmp_path / "off", scale=-0.1)
    assert inject(tmp_path / "off", folder / "a", tmp_path / "less", scale=-0.1)["removal"]["bound"] is None


def test_a_method_is_undone_in_parts(folder, target, tmp_path):
    options = {"method": "ties", "parameters": {"density": 0.4}}
    pairs = [(folder / "a", 0.5), (folder / "b", 1.0)]
    inject(target, pairs, tmp_path / "all", **options)
    report = inject(tmp_path / "all", pairs, tmp_path / "half", scale=-0.5, **options)
    assert report["removal"]["left"] == {"a": 0.25, "b": 0.5}
    report = inject(tmp_path / "half", pairs, tmp_path / "none", scale=-0.5, **options)
    assert report["removal"]["exact"] is True
    assert same(tmp_path / "none", target)
    assert "removal" not in inject(tmp_path / "half", folder / "a", tmp_path / "other", scale=-0.5)
    assert balance(tmp_path / "other")["original"] == fingerprint_checkpoint(tmp_path / "half")


def test_each_output_of_a_sweep_has_its_balance(folder, target, tmp_path):
    inject(target, folder / "a", tmp_path / "one")
    inject_scales(tmp_path / "one", folder / "a", tmp_path / "sweep", [-1.0, 0.0, 0.5])
    found = {path.name: held(path) for path in (tmp_path / "sweep").iterdir()}
    assert found == {"scale--1": {}, "scale-0": {"a": 1.0}, "scale-0.5": {"a": 1.5}}


def test_an_original_that_was_written_in_by_hand_is_not_taken(folder, target, tmp_path):
    inject(target, [(folder / "a", 1.0), (folder / "b", 1.0)], tmp_path / "both")
    inject(tmp_path / "both", folder / "a", tmp_path / "rest", scale=-1)
    other = tiny_finetune(target, tmp_path / "other", seed=9)
    inject(other, folder / "b", tmp_path / "noted")
    made = read_provenance(tmp_path / "rest")["made_by"]
    made["balance"]["original"] = fingerprint_checkpoint(other)
    edit_json(tmp_path / "rest/skillgraft.json", made_by=made)
    report = inject(tmp_path / "rest", folder / "b", tmp_path / "back", scale=-1)
    assert report["removal"]["exact"] is False
    assert report["removal"]["bound"] is None
    assert any("no longer gives" in remark for remark in report["remarks"])
    assert distance(tmp_path / "back", target)[0] < 0.5 * distance(other, target)[0]


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("scale",), float("inf"), "Out of range"),
        (("skills", 0, "scale"), float("nan"), "Out of range"),
        (("skills", 0, "scale"), "1.0", "valid number"),
        (("skills", 0, "scale"), True, "valid number"),
        (("skills", 0, "fingerprint"), None, "valid string"),
        (("balance", "held", "scale"), float("-inf"), "Out of range"),
        (("balance", "rounding"), -1.0, "greater than or equal to 0"),
        (("balance", "steps"), 0, "greater than or equal to 1"),
        (("balance",), None, "valid dictionary|object"),
        (("balance", "weights"), 7, "valid string"),
        (("dtype",), 7, "no text"),
    ],
)
def test_a_provenance_that_says_nonsense_is_not_counted(folder, tmp_path, path, value, why):
    inject(folder / "bfloat16", folder / "a", tmp_path / "grafted")
    made = read_provenance(tmp_path / "grafted")["made_by"]
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    edit_json(tmp_path / "grafted/skillgraft.json", made_by=made)
    report = inject(tmp_path / "grafted", folder / "a", tmp_path / "out", scale=-1)
    assert "removal" not in report
    (remark,) = [r for r in report["remarks"] if "does not say in a usable form what was injected before" in r]
    assert re.search(why, remark)
    assert 0 < distance(tmp_path / "out", folder / "bfloat16")[0] < 0.1
    assert held(tmp_path / "out") == {"a": -1.0}
    original = folder / "bfloat16"
    report = inject(tmp_path / "grafted", folder / "a", tmp_path / "back", scale=-1, original=original)
    assert report["removal"]["exact"] is True


def test_a_number_too_large_for_json_readers_is_not_counted(folder, tmp_path):
    inject(folder / "bfloat16", folder / "a", tmp_path / "grafted")
    file = tmp_path / "grafted/skillgraft.json"
    content = json.loads(file.read_text())
    content["made_by"]["scale"] = 10**400
    file.write_text(json.dumps(content))
    assert "removal" not in inject(tmp_path / "grafted", folder / "a", tmp_path / "out", scale=-1)


def test_a_lossless_copy_of_a_skill_takes_it_out(folder, target, tmp_path):
    inject(target, folder / "a", tmp_path / "grafted")
    pack(folder / "a", tmp_path / "sparse", "sparse")
    report = inject(tmp_path / "grafted", tmp_path / "sparse", tmp_path / "back", scale=-1)
    assert report["removal"]["exact"] is True  # proved bit for bit
    assert same(tmp_path / "back", target)
    target.rename(tmp_path / "elsewhere")
    report = inject(tmp_path / "grafted", tmp_path / "sparse", tmp_path / "near", scale=-1)
    assert report["removal"]["left"] == {"a": 0.0}
    assert report["removal"]["bound"] is None  # nothing but its manifest says so
    assert any("only its manifest says" in remark for remark in report["remarks"])
    pack(folder / "a", tmp_path / "lossy", "lowrank", rank=2)
    assert "removal" not in inject(tmp_path / "grafted", tmp_path / "lossy", tmp_path / "other", scale=-1)
