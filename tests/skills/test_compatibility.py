import json

import pytest
import torch
from safetensors.torch import save_file

from skillgraft.arithmetic import extract
from skillgraft.checkpoint import fingerprint_checkpoint, read_layout, write_provenance
from skillgraft.errors import CompatibilityError
from skillgraft.skills import check_compatibility
from tests.tiny import edit_json, tiny_checkpoint, tiny_finetune, weights

BASE = {"id": "some/base", "fingerprint": "blake3:0b"}
OTHER = {"id": "other/base", "fingerprint": "blake3:0c"}


@pytest.fixture(scope="module")
def skills(tiny, tmp_path_factory):
    """The same skill extracted from SFT models without and with provenance."""
    folder = tmp_path_factory.mktemp("skills")
    sft = tiny_finetune(tiny, folder / "sft", seed=1)
    rl = tiny_finetune(sft, folder / "rl", seed=2, size=1e-4)
    unknown = extract(rl, sft, folder / "unknown")
    write_provenance(sft, kind="sft", base=BASE)
    return {"unknown": unknown, "known": extract(rl, sft, folder / "known"), "sft": sft}


@pytest.fixture
def target(tiny, tmp_path):
    return tiny_finetune(tiny, tmp_path / "target", seed=3)


def check(target, skill, **settings):
    return check_compatibility(read_layout(target), skill, **settings)


def test_the_base_is_in_the_manifest(skills):
    assert skills["known"].manifest.base.model_dump() == BASE
    assert skills["known"].manifest.base_is_known
    assert skills["unknown"].manifest.base.id is None
    assert skills["unknown"].manifest.base.fingerprint == fingerprint_checkpoint(skills["sft"])
    assert not skills["unknown"].manifest.base_is_known


def test_same_base_by_provenance(skills, target):
    write_provenance(target, kind="sft", base=BASE)
    assert check(target, skills["known"]) == ["same base by provenance: some/base"]


def test_a_base_recognised_by_its_weights(skills, target):
    for skill in (skills["known"], skills["unknown"]):
        (remark,) = check(target, skill)
        assert remark.startswith("target has no provenance: base recognised by weights sketch, correlation 0.99")


def test_a_skill_without_base_is_matched_by_weights(skills, target):
    write_provenance(target, kind="sft", base=BASE)
    (remark,) = check(target, skills["unknown"])
    assert remark.startswith("the skill's base is not recorded: base recognised by weights sketch")


def test_the_sft_model_itself_fits(skills, tmp_path):
    (remark,) = check(skills["sft"], skills["unknown"])
    assert "the target is the skill's own base or SFT model, by fingerprint" in remark


def test_another_base_by_provenance(skills, target):
    write_provenance(target, kind="sft", base=OTHER)
    message = r"names the base other/base \(blake3:0c\), expected some/base \(blake3:0b\); correlation .*: 0\.99"
    with pytest.raises(CompatibilityError, match=message) as caught:
        check(target, skills["known"])
    assert "allow_other_base" in str(caught.value)
    (remark,) = check(target, skills["known"], allow_other_base=True)
    assert remark.endswith("allowed explicitly")


def test_another_copy_of_the_same_base(skills, target, tmp_path):
    write_provenance(target, kind="sft", base={"id": "some/base", "fingerprint": "blake3:0d"})
    (remark,) = check(target, skills["known"])
    assert remark.startswith("same base some/base in another copy")
    stranger = tiny_checkpoint(tmp_path / "stranger", seed=9)
    write_provenance(stranger, kind="sft", base={"id": "some/base", "fingerprint": "blake3:0d"})
    with pytest.raises(CompatibilityError, match="names the base some/base"):
        check(stranger, skills["known"])


def test_another_base_by_weights(skills, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=9)
    for skill in (skills["known"], skills["unknown"]):
        with pytest.raises(CompatibilityError, match=r"looks like another base: weights sketch correlation -?0\.[01]"):
            check(other, skill)
        (remark,) = check(other, skill, allow_other_base=True)
        assert remark.endswith("allowed explicitly")


def test_a_skill_whose_sketch_cannot_be_compared(skills, target):
    path = skills["unknown"].path / "skill.json"
    kept = path.read_text()
    edit_json(path, sketch={})
    from skillgraft.skills import load_skill

    try:
        with pytest.raises(CompatibilityError, match="no matrix could be compared with the skill's sketch"):
            check(target, load_skill(skills["unknown"].path))
    finally:
        path.write_text(kept)


def replace_tensors(path, **tensors):
    kept = {**weights(path), **tensors}
    kept = {name: tensor for name, tensor in kept.items() if tensor is not None}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})


def test_a_missing_tensor(skills, target):
    replace_tensors(target, **{"model.norm.weight": None})
    with pytest.raises(CompatibilityError, match=r"target has no tensor 'model\.norm\.weight', which the skill"):
        check(target, skills["known"], allow_other_base=True)


def test_another_shape(skills, target):
    replace_tensors(target, **{"model.embed_tokens.weight": torch.zeros(300, 32)})
    message = r"tensor 'model\.embed_tokens\.weight' has shape \[300, 32\], expected \[320, 32\]"
    with pytest.raises(CompatibilityError, match=message):
        check(target, skills["known"], allow_other_base=True)


def test_integer_storage(skills, target):
    replace_tensors(target, **{"model.norm.weight": torch.zeros(32, dtype=torch.int8)})
    with pytest.raises(CompatibilityError, match=r"tensor 'model\.norm\.weight' is stored as I8"):
        check(target, skills["known"], allow_other_base=True)


def test_an_untied_target(tmp_path, skills, target):
    untied = extract(
        tiny_finetune(tiny_checkpoint(tmp_path / "u", tie=False), tmp_path / "u-rl", names=["lm_head.weight"]),
        tmp_path / "u",
        tmp_path / "untied-skill",
    )
    with pytest.raises(CompatibilityError, match=r"no tensor 'lm_head\.weight' \(it is tied to the embedding there\)"):
        check(target, untied)
    with pytest.raises(CompatibilityError, match="tie_word_embeddings is False, expected True"):
        check(tmp_path / "u", skills["known"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_attention_heads": 2, "head_dim": 16},
            "head_dim is 16, expected 8; num_attention_heads is 2, expected 4",
        ),
        (
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
            r"RoPE rope_theta is 500000\.0, expected 10000\.0",
        ),
    ],
)
def test_other_facts_with_equal_shapes(skills, target, change, message):
    edit_json(target / "config.json", **change)
    with pytest.raises(CompatibilityError, match=message):
        check(target, skills["known"], allow_other_base=True)


def test_another_tokenizer(skills, target):
    path = target / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(CompatibilityError, match=r"target has another tokenizer than the skill .*: token map blake3:"):
        check(target, skills["known"], allow_other_base=True)
