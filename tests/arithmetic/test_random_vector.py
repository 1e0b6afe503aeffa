import shutil

import pytest
import torch

from skillgraft.arithmetic import extract, inject, random_vector
from skillgraft.errors import MissingPathError, OutputExistsError, RecipeError
from skillgraft.skills.library import add_skill
from skillgraft.skills.skill import Skill, write_skill_description
from tests.arithmetic.test_extract_adapter import rl_checkpoint
from tests.tiny import tiny_finetune, weights


@pytest.fixture(scope="module")
def skill(models, tmp_path_factory):
    return extract(models / "rl", models / "sft", tmp_path_factory.mktemp("skill") / "skill", domain="almanac")


def cosine(one, other):
    return torch.nn.functional.cosine_similarity(one.double().flatten(), other.double().flatten(), dim=0).item()


def test_same_norms_and_another_direction(skill, tmp_path):
    control = random_vector(skill, tmp_path / "control", seed=5)
    assert isinstance(control, Skill)
    assert control.names == skill.names
    for name in skill.names:
        assert control.shape(name) == skill.shape(name)
        assert control.delta(name).double().norm().item() == pytest.approx(skill.norm(name), rel=1e-6)
    flat = [torch.cat([s.delta(name).flatten() for name in skill.names]) for s in (skill, control)]
    assert abs(cosine(*flat)) < 4 / flat[0].numel() ** 0.5
    big = "model.embed_tokens.weight"
    kurtosis = (control.delta(big) / control.delta(big).std()).double().pow(4).mean().item()
    assert kurtosis == pytest.approx(3.0, abs=0.2)


def test_a_name_will_do(skill, tmp_path):
    add_skill(skill.path, "almanac")
    by_name, by_path = random_vector("almanac", tmp_path / "one", 1), random_vector(skill.path, tmp_path / "two", 1)
    assert all(by_name.delta(name).equal(by_path.delta(name)) for name in skill.names)
    assert random_vector("squad-recall", tmp_path / "shipped", 1).manifest.formula.startswith("random control")
    with pytest.raises(MissingPathError, match="almanak: no such directory, and no skill of that name in the library"):
        random_vector("almanak", tmp_path / "none", 1)


def test_a_low_rank_skill_gets_a_control_of_the_same_rank(models, tmp_path):
    skill = extract(rl_checkpoint(models / "sft", tmp_path / "rl"), models / "sft", tmp_path / "skill")
    control = random_vector(skill, tmp_path / "control", seed=5)
    assert control.form == "lowrank"
    for name in skill.names:
        assert control.manifest.tensors[name] == skill.manifest.tensors[name]
        delta = control.delta(name)
        assert delta.double().norm().item() == pytest.approx(skill.norm(name), rel=1e-6)
        assert torch.linalg.matrix_rank(delta, rtol=1e-4) == 3
        assert abs(cosine(delta, skill.delta(name))) < 0.35


def test_the_seed_and_the_name_alone_decide(models, skill, tmp_path):
    one = random_vector(skill, tmp_path / "one", seed=5)
    again = random_vector(skill.path, tmp_path / "again", seed=5)
    other = random_vector(skill, tmp_path / "other", seed=6)
    name = "model.norm.weight"
    assert one.weights_file.read_bytes() == again.weights_file.read_bytes()
    assert abs(cosine(one.delta(name), other.delta(name))) < 0.7
    q_proj = "model.layers.{}.self_attn.q_proj.weight"
    assert abs(cosine(one.delta(q_proj.format(0)), one.delta(q_proj.format(1)))) < 0.2
    few = extract(
        tiny_finetune(models / "sft", tmp_path / "rl", names=[name], size=1e-2), models / "sft", tmp_path / "few"
    )
    alone = random_vector(few, tmp_path / "alone", seed=5)
    assert torch.allclose(alone.delta(name) / few.norm(name), one.delta(name) / skill.norm(name), rtol=1e-5)


def test_the_manifest_says_what_it_is(skill, tmp_path):
    scored = shutil.copytree(skill.path, tmp_path / "scored")
    write_skill_description(scored, skill.manifest.model_copy(update={"scores": [{"model": "x"}], "seed": 1}))
    control = random_vector(scored, tmp_path / "control", seed=5)
    manifest = control.manifest
    assert manifest.formula.startswith("random control: v = ‖v_skill‖ · g / ‖g‖")
    assert (manifest.seed, manifest.scores, manifest.reconstruction_error) == (5, [], 0.0)
    for key in ("base", "sft", "rl", "tokenizer", "architecture", "sketch", "domain"):
        assert getattr(manifest, key) == getattr(skill.manifest, key)


def test_a_control_is_injected_like_a_skill(models, skill, tmp_path):
    control = random_vector(skill, tmp_path / "control", seed=5)
    inject(models / "target", control, tmp_path / "out")
    target, out = weights(models / "target"), weights(tmp_path / "out")
    assert all(torch.equal(out[name], target[name] + control.delta(name)) for name in target)


def test_wrong_arguments(skill, tmp_path):
    for seed in ("5", 1.0, None, True):
        with pytest.raises(RecipeError, match=r"seed is .*, expected an integer"):
            random_vector(skill, tmp_path / "control", seed=seed)
    (tmp_path / "control").mkdir()
    with pytest.raises(OutputExistsError, match="control exists already"):
        random_vector(skill, tmp_path / "control", seed=5)
