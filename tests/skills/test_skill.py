import json
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import load_file, save_file

from skillgraft.arithmetic import extract
from skillgraft.errors import CheckpointError, MissingPathError
from skillgraft.skills import Skill, load_skill
from skillgraft.skills.card import card_text
from skillgraft.skills.forms import sparse
from skillgraft.skills.manifest import manifest_text, read_manifest
from skillgraft.skills.skill import add_scores
from tests.tiny import edit_json, tiny_finetune, weights

NAMES = ("model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight")


@pytest.fixture(scope="module")
def extracted(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("skill")
    rl = tiny_finetune(tiny, folder / "rl", names=NAMES)
    extract(rl, tiny, folder / "skill", domain="almanac", license="apache-2.0", seed=3)
    return folder


@pytest.fixture
def skill(extracted, tmp_path):
    return shutil.copytree(extracted / "skill", tmp_path / "skill")


def test_a_skill_reads_its_deltas(skill, extracted, tiny):
    loaded = load_skill(skill)
    rl, sft = weights(extracted / "rl"), weights(tiny)
    assert isinstance(loaded, Skill)
    assert loaded.form == "dense"
    assert sorted(loaded.names) == sorted(NAMES)
    for name in loaded.names:
        expected = rl[name] - sft[name]
        assert torch.equal(loaded.delta(name), expected)
        assert loaded.shape(name) == tuple(expected.shape)
        assert loaded.norm(name) == pytest.approx(expected.double().norm().item(), rel=1e-12)


def test_the_older_spelling_of_license_is_read_and_not_written(skill):
    file = skill / "skill.json"
    file.write_text(file.read_text().replace('"license"', '"licence"'))
    assert load_skill(skill).manifest.license == "apache-2.0"
    add_scores(skill, [{"F1": 0.5}])
    assert '"license": "apache-2.0"' in file.read_text()
    assert "licence" not in file.read_text() + (skill / "README.md").read_text()
    edit_json(file, licence="mit")
    with pytest.raises(CheckpointError, match="licence: Extra inputs are not permitted"):
        load_skill(skill)


def test_a_mixed_skill(skill):
    """One tensor as factors beside dense ones."""
    name = NAMES[0]
    a, b = torch.randn(2, 32), torch.randn(64, 2)
    tensors = load_file(skill / "skill.safetensors")
    del tensors[name]
    save_file({**tensors, f"{name}.lowrank_a": a, f"{name}.lowrank_b": b}, skill / "skill.safetensors")
    entries = json.loads((skill / "skill.json").read_text())["tensors"]
    entries[name] |= {"form": "lowrank", "rank": 2}
    edit_json(skill / "skill.json", tensors=entries)
    loaded = load_skill(skill)
    assert loaded.form == "lowrank"
    assert torch.equal(loaded.delta(name), b @ a)
    assert torch.equal(loaded.delta(NAMES[2]), tensors[NAMES[2]])


def test_an_unknown_parameter_gets_a_hint(skill):
    loaded = load_skill(skill)
    for ask in (loaded.delta, loaded.norm, loaded.shape):
        with pytest.raises(
            CheckpointError, match=r"no delta for 'model\.norm\.weigh'; did you mean 'model\.norm\.weight'"
        ):
            ask("model.norm.weigh")


def test_missing_parts(skill, tmp_path):
    with pytest.raises(MissingPathError, match="nothing: no such directory; expected a skill"):
        load_skill(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"skill\.json is a file"):
        load_skill(skill / "skill.json")
    for name in ("skill.safetensors", "skill.json"):
        (skill / name).rename(skill / "away")
        with pytest.raises(MissingPathError, match=f"skill: no {name}; expected a skill directory"):
            load_skill(skill)
        (skill / "away").rename(skill / name)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
def test_a_manifest_that_is_no_json_object(skill, text):
    (skill / "skill.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"skill/skill\.json: "):
        load_skill(skill)


def nested(depth):
    return 0 if depth == 0 else [nested(depth - 1)]


ENTRY = {"form": "dense", "rank": None, "shape": [32], "dtype": "F32", "norm": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format_version is 3, expected 2 or older"),
        ({"format_version": ...}, "format_version is None, expected 2"),
        ({"formula": ...}, "formula: Field required"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"base": {"id": None}}, r"base\.fingerprint: Field required"),
        ({"base": {"id": None, "fingerprint": "x", "more": 1}}, r"base\.more: Extra inputs"),
        ({"seed": "three"}, "seed: Input should be a valid integer"),
        ({"reconstruction_error": -1.0}, "reconstruction_error: Input should be greater than or equal to 0"),
        ({"reconstruction_error": float("nan")}, "'reconstruction_error' is nan, expected a finite number"),
        ({"tensors": {}}, "tensors: Dictionary should have at least 1 item"),
        ({"tensors": {"w": {**ENTRY, "norm": float("inf")}}}, r"'tensors\.w\.norm' is inf, expected a finite number"),
        (
            {"tensors": {"w": {**ENTRY, "norm": 1e308}}},
            r"tensors\.w\.norm: .*1e\+308 is not a norm of weights, expected at most 1e\+150",
        ),
        (
            {"reconstruction_error": 1e308},
            r"^\S+: no valid skill manifest: reconstruction_error: .*expected at most 1e\+150",
        ),
        ({"scores": [{"F1": 0.5}, {"F1": float("nan")}]}, r"'scores\.1\.F1' is nan, expected a finite number"),
        ({"scores": [{"F1": [{"low": float("-inf")}]}]}, r"'scores\.0\.F1\.0\.low' is -inf, expected a finite number"),
        ({"scores": [{"F1": nested(70)}]}, r"'scores\.0\.F1\.0\.0.*' is nested deeper than 64 levels"),
        ({"scores": [{f"F{n}": 1} for n in range(400)]}, "400 rows of 400 columns; expected at most 100000 cells"),
        ({"tensors": {"w": {**ENTRY, "form": "magic"}}}, r"w\.form: Input should be 'dense', 'lowrank', 'sparse' or"),
        ({"tensors": {"w": {**ENTRY, "rank": 4}}}, r"tensors\.w: .*rank 4 with form dense"),
        ({"tensors": {"w": {**ENTRY, "form": "lowrank", "rank": 4}}}, r"tensors\.w: .*expected two dimensions"),
        ({"tensors": {"w": {**ENTRY, "shape": [-1]}}}, r"tensors\.w\.shape\.0: Input should be greater"),
    ],
)
def test_a_manifest_with_wrong_content(skill, change, message):
    edit_json(skill / "skill.json", **change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_skill(skill)
    assert str(skill / "skill.json") in str(caught.value)


def test_tensors_that_are_not_the_manifests(skill):
    path = skill / "skill.safetensors"
    tensors = load_file(path)
    name = NAMES[2]
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    with pytest.raises(CheckpointError, match=r"names 'model\.norm\.weight' as dense, but skill\.safetensors holds no"):
        load_skill(skill)
    save_file({**tensors, "ghost": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"holds 'ghost', which skill\.json does not name"):
        load_skill(skill)
    save_file({**tensors, name: torch.ones(31)}, path)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is F32 of shape \[31\], expected F32 of \[32\]"):
        load_skill(skill)
    save_file({**tensors, name: torch.ones(32).bfloat16()}, path)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is BF16"):
        load_skill(skill)


def test_truncated_tensors(skill):
    path = skill / "skill.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"skill\.safetensors: truncated"):
        load_skill(skill)


def test_a_manifest_is_written_as_it_is_read(skill, tmp_path):
    manifest = read_manifest(skill / "skill.json")
    text = manifest_text(manifest)
    assert text == (skill / "skill.json").read_text()
    assert json.loads(text) == manifest.model_dump(mode="json")
    assert max(map(len, text.splitlines())) > 400  # a sketch's numbers stand on one line
    tricky = manifest.model_copy(update={"domain": "[\n 1,\n 2 ]", "scores": [{"f1": [0.25, 0.5], "model": "a [ 1 ]"}]})
    (tmp_path / "skill.json").write_text(manifest_text(tricky))
    assert read_manifest(tmp_path / "skill.json") == tricky


def test_the_card(skill):
    text = (skill / "README.md").read_text()
    manifest = read_manifest(skill / "skill.json")
    assert text == card_text(manifest)
    body = text.split("---\n", 2)[2]
    assert "# Skill: almanac" in body
    assert "| formula | v = θ_RL − θ_SFT |" in body
    assert "## Scores" not in body
    named = manifest.model_copy(
        update={
            "base": manifest.base.model_copy(update={"id": "some/base", "fingerprint": "blake3:1"}),
            "scores": [{"model": "grafted", "f1": 0.5}, {"model": "a|b", "scale": 1}],
        }
    )
    text = card_text(named)
    assert yaml.safe_load(text.split("---\n", 2)[1])["base_model"] == "some/base"
    assert "| base | some/base (`blake3:1`) |" in text
    assert "| model | f1 | scale |\n|---|---|---|\n| grafted | 0.5 |  |\n| a\\|b |  | 1 |" in text


@pytest.mark.parametrize("every", [2, 17])
def test_a_large_index_is_checked_by_blocks(skill, every):
    """Memory is bounded however large the tensor is, and a fault in the last block is found."""
    elements = 12 * sparse.RUN * sparse.BLOCK + 5
    kept = np.zeros(elements, dtype=bool)
    kept[::every] = True
    made = sparse.encode_sparse(np.zeros(elements, dtype=np.float16), kept)
    assert made.coding == ("bitmap" if every == 2 else "places")
    entry = {"form": "sparse", "count": len(made.values), "coding": made.coding}
    entry |= {"shape": [elements], "dtype": "F16", "norm": 0.0}
    edit_json(skill / "skill.json", tensors={"w": entry})
    tensors = {"w.sparse_offsets": made.offsets, "w.sparse_index": made.index, "w.sparse_values": made.values}
    save_numpy(tensors, skill / "skill.safetensors")
    tracemalloc.start()
    loaded = load_skill(skill)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * sparse.RUN * sparse.BLOCK  # all positions at once would take 8 bytes for each of `count`
    assert torch.equal(loaded.delta("w"), torch.zeros(elements))
    made.index[-1] = 0xFF if made.coding == "bitmap" else 0
    save_numpy(tensors, skill / "skill.safetensors")
    with pytest.raises(CheckpointError, match=r"the delta of 'w' is damaged: its (bitmap|places)"):
        load_skill(skill)


def test_scores_are_added_to_manifest_and_card(tiny, tmp_path):
    from skillgraft.arithmetic import extract
    from tests.tiny import tiny_finetune

    skill = extract(tiny_finetune(tiny, tmp_path / "rl"), tiny, tmp_path / "skill")
    add_scores(skill.path, [{"model": "SFT", "F1": 0.1}])
    again = add_scores(skill.path, [{"model": "SFT + skill", "F1": 0.2}])
    assert again.manifest.scores == [{"model": "SFT", "F1": 0.1}, {"model": "SFT + skill", "F1": 0.2}]
    assert "| SFT + skill | 0.2 |" in (skill.path / "README.md").read_text()
    assert sorted(file.name for file in skill.path.iterdir()) == ["README.md", "skill.json", "skill.safetensors"]
