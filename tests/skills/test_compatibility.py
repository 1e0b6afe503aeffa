import json

import pytest
import torch
from safetensors.torch import save_file

from skillgraft.arithmetic import extract
from skillgraft.checkpoint import fingerprint_checkpoint, read_layout, write_provenance
from skillgraft.errors import CompatibilityError
from skillgraft.skills import check_compatibility, load_skill
from skillgraft.skills.compatibility import skill_findings, tie_problem, verdict
from skillgraft.skills.rounding import rounding_finding, rounding_loss
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


def test_findings_without_a_refusal(skills, target):
    write_provenance(target, kind="sft", base=BASE)
    findings = skill_findings(read_layout(target), skills["known"])
    assert [(finding.level, finding.about) for finding in findings] == [
        ("fits", "tensors"),
        ("fits", "architecture"),
        ("fits", "tokenizer"),
        ("fits", "base"),
    ]
    assert verdict(findings) == "fits"
    (target / "skillgraft.json").unlink()
    findings = skill_findings(read_layout(target), skills["known"])
    assert (findings[-1].level, findings[-1].about) == ("remark", "base")
    assert verdict(findings) == "fits with remarks"


def test_every_reason_is_given(skills, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=9)
    replace_tensors(other, **{"model.norm.weight": None, "model.layers.0.mlp.up_proj.weight": torch.zeros(63, 32)})
    edit_json(other / "config.json", num_attention_heads=8)
    content = json.loads((other / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    findings = skill_findings(read_layout(other), skills["known"])
    refused = [finding.about for finding in findings if finding.level == "refused"]
    assert refused == ["tensors", "tensors", "architecture", "tokenizer", "base"]
    assert verdict(findings) == "refused"
    with pytest.raises(CompatibilityError, match="5 reasons against it:") as caught:
        check(other, skills["known"])
    for reason in ("no tensor 'model.norm.weight'", "[63, 32]", "heads is 8", "another tokenizer", "another base"):
        assert reason in str(caught.value)
    allowed = skill_findings(read_layout(other), skills["known"], allow_other_base=True)
    assert (allowed[-1].level, allowed[-1].about) == ("remark", "base")


def test_many_tensors_with_one_fault_are_one_reason(skills, target):
    replace_tensors(target, **{f"model.layers.1.mlp.{part}_proj.weight": None for part in ("up", "down", "gate")})
    with pytest.raises(CompatibilityError, match=r"no tensor 'model\.layers\.1\.mlp\..*\(and 2 more such\)"):
        check(target, skills["known"], allow_other_base=True)


def test_a_vocabulary_padded_in_the_target(tiny, skills, target, tmp_path):
    """320 rows of tokens in the skill, 384 in the target: the skill's rows are added, the others stay."""
    from skillgraft.arithmetic import inject

    name = "model.embed_tokens.weight"
    before = weights(target)[name]
    padding = torch.randn(64, 32)
    replace_tensors(target, **{name: torch.cat([before, padding])})
    edit_json(target / "config.json", vocab_size=384)
    remarks = check(target, skills["unknown"], allow_other_base=True)
    assert any("pads its vocabulary: 'model.embed_tokens.weight' has 384 rows, the skill 320" in r for r in remarks)
    inject(target, skills["unknown"], tmp_path / "out", allow_other_base=True)
    found = weights(tmp_path / "out")[name]
    assert torch.equal(found[320:], padding)
    exact = before.double() + skills["unknown"].delta(name).double()
    assert torch.equal(found[:320], exact.float())


def test_a_padded_skill_on_a_target_without_its_rows(skills, target):
    """The other way round rows of the skill would be dropped."""
    name = "model.embed_tokens.weight"
    replace_tensors(target, **{name: weights(target)[name][:310]})
    edit_json(target / "config.json", vocab_size=310)
    with pytest.raises(CompatibilityError, match=r"has shape \[310, 32\], expected \[320, 32\]"):
        check(target, skills["known"], allow_other_base=True)


def test_a_tied_pair_that_is_stored_twice(target):
    embedding = weights(target)["model.embed_tokens.weight"]
    replace_tensors(target, **{"lm_head.weight": embedding.clone()})
    layout = read_layout(target)
    assert tie_problem(layout, ["model.norm.weight"]) is None
    assert tie_problem(layout, ["model.embed_tokens.weight", "lm_head.weight"]) is None
    assert "only 'model.embed_tokens.weight' would change" in tie_problem(layout, ["model.embed_tokens.weight"])


def test_the_loss_to_rounding_is_what_injection_reports(tiny, skills, target, tmp_path):
    """All tensors of this skill are of few elements, but only 8 of them are sampled."""
    from skillgraft.arithmetic import inject

    half = tiny_finetune(tiny, tmp_path / "half", seed=3)
    for name, tensor in (kept := weights(half)).items():
        kept[name] = tensor.bfloat16()
    save_file(kept, half / "model.safetensors", metadata={"format": "pt"})
    report = inject(half, skills["unknown"], tmp_path / "out", allow_other_base=True)
    skill = load_skill(skills["unknown"].path)
    estimated = rounding_loss(read_layout(half), skill)
    assert estimated == pytest.approx(1 - report["survived_rounding"], rel=0.2)
    finding = rounding_finding(read_layout(half), skill)
    assert (finding.level, finding.about) == ("remark", "rounding")
    assert f"about {estimated:.0%} of the skill is lost to rounding in BF16" in finding.message
    assert rounding_finding(read_layout(target), skill) is None
