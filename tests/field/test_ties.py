"""Tied matrices that one file stores twice and another once, and left-over quantization keys."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from skillgraft.arithmetic import extract, inject, merge
from skillgraft.checkpoint.layout import read_layout
from skillgraft.errors import CheckpointError, CompatibilityError
from skillgraft.geometry.comparison import compare
from tests.tiny import edit_json, tiny_checkpoint, tiny_finetune, weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def pair(tmp_path):
    base = tiny_checkpoint(tmp_path / "sft")
    return base, tiny_finetune(base, tmp_path / "rl", size=0.01)


def store_head(path, change=0.0):
    """Store the tied head too, as verl and older exports do."""
    tensors = load_file(path / "model.safetensors")
    tensors[HEAD] = tensors[EMBEDDING].clone() + change
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)], ids=["sft", "rl", "both"])
def test_a_stored_copy_counts_as_tied(tmp_path, pair, which):
    expected = extract(pair[1], pair[0], tmp_path / "expected")
    for number in which:
        store_head(pair[number])
    skill = extract(pair[1], pair[0], tmp_path / "skill")
    assert set(skill.names) - {HEAD} == set(expected.names)
    for name in expected.names:
        assert torch.equal(skill.delta(name), expected.delta(name))
    assert (HEAD in skill.names) == (which == (0, 1))


def test_a_head_that_differs_is_refused_without_advice_that_is_not_there(tmp_path, pair):
    store_head(pair[1], change=0.1)
    with pytest.raises(CompatibilityError, match="tied in one file and stored in the other") as caught:
        extract(pair[1], pair[0], tmp_path / "skill")
    assert "--allow" not in str(caught.value)


def test_other_refusals_of_extract_advise_no_option(tmp_path, pair):
    other = tiny_checkpoint(tmp_path / "other", num_key_value_heads=4)
    with pytest.raises(CompatibilityError, match="expected models of one architecture") as caught:
        extract(other, pair[0], tmp_path / "skill")
    assert "--allow" not in str(caught.value)


def test_a_merge_with_a_stored_copy(tmp_path, pair):
    operands = [{"model": str(pair[1]), "weight": 0.5}]
    recipe = {"method": "task_arithmetic", "base": str(pair[0]), "operands": operands}
    merge(recipe, tmp_path / "expected")
    store_head(pair[1])
    merge(recipe, tmp_path / "out")
    expected, made = weights(tmp_path / "expected"), weights(tmp_path / "out")
    assert expected.keys() == made.keys()
    assert all(torch.equal(expected[name], made[name]) for name in expected)


def test_a_merge_that_would_break_the_tie_is_refused(tmp_path, pair):
    """The base stores both, one operand only the embedding: the head would get another sum than the embedding."""
    store_head(pair[0])
    third = store_head(tiny_finetune(pair[0], tmp_path / "third", seed=5, names=[EMBEDDING]))
    operands = [{"model": str(path), "weight": 0.5} for path in (pair[1], third)]
    recipe = {"method": "linear", "base": str(pair[0]), "operands": operands, "allow": ["missing"]}
    with pytest.raises(CompatibilityError, match=r"ties .*embed_tokens.* and 'lm_head.weight' but stores both"):
        merge(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_both_copies_changed_alike_stay_equal(tmp_path, pair):
    for path in pair:
        store_head(path)
    operands = [{"model": str(pair[1]), "weight": 0.5}]
    merge({"method": "linear", "base": str(pair[0]), "operands": operands}, tmp_path / "out")
    made = weights(tmp_path / "out")
    assert torch.equal(made[HEAD], made[EMBEDDING])


def test_a_comparison_with_a_stored_copy(tmp_path, pair):
    third = tiny_finetune(pair[0], tmp_path / "third", seed=5)
    operands = [str(pair[1]), str(third)]
    expected = compare(operands, base=pair[0])
    store_head(third)
    assert compare(operands, base=pair[0])["pairs"] == expected["pairs"]


def test_a_skill_is_not_added_to_one_of_two_copies(tmp_path, pair):
    extract(pair[1], pair[0], tmp_path / "skill")
    store_head(pair[0])
    with pytest.raises(CompatibilityError, match="stores both, and only"):
        inject(pair[0], tmp_path / "skill", tmp_path / "out")


@pytest.mark.parametrize("place", ["quantization_config", "text_config"])
def test_a_left_over_quantization_key_says_what_to_delete(tmp_path, place):
    base = tiny_checkpoint(tmp_path / "base")
    quantized = {"quant_method": "fp8"}
    key = "quantization_config"
    edit_json(base / "config.json", **({key: quantized} if place == key else {place: {key: quantized}}))
    full = key if place == key else f"{place}.{key}"
    with pytest.raises(CheckpointError, match=f"the key is left over, delete {full} from config.json"):
        read_layout(base)
