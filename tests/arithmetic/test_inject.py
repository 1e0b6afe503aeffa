import errno
import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from skillgraft.arithmetic import extract, inject
from skillgraft.checkpoint import (
    fingerprint_checkpoint,
    fingerprint_file,
    read_layout,
    read_provenance,
    write_provenance,
)
from skillgraft.errors import CheckpointError, CompatibilityError, OutputExistsError, RecipeError, StorageError
from tests.tiny import split_into_shards, tiny_checkpoint, tiny_finetune, weights

NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def skill(models, tmp_path_factory):
    return extract(models / "rl", models / "sft", tmp_path_factory.mktemp("skill") / "skill")


@pytest.fixture(scope="module")
def norm_skill(models, tmp_path_factory):
    """A skill that changes one tensor."""
    folder = tmp_path_factory.mktemp("norm")
    rl = tiny_finetune(models / "sft", folder / "rl", names=[NORM], size=1e-2)
    return extract(rl, models / "sft", folder / "skill")


@pytest.mark.parametrize("scale", [1.0, 0.5, -2])
def test_the_formula(models, skill, tmp_path, scale):
    report = inject(models / "target", skill, tmp_path / "out", scale=scale)
    target, grafted = weights(models / "target"), weights(tmp_path / "out")
    for name in target:
        assert torch.equal(grafted[name], target[name] + skill.delta(name) * scale)
        norm = report["tensors"][name]["norm"]
        assert norm == pytest.approx(abs(scale) * skill.delta(name).double().norm().item(), rel=1e-9)
    assert report["scale"] == scale
    assert report["survived_rounding"] > 0.9999
    assert report["remarks"][0].startswith("target has no provenance: base recognised by weights sketch")
    json.dumps(report)


def test_a_skill_can_be_named_by_its_path(models, skill, tmp_path):
    inject(str(models / "target"), str(skill.path), str(tmp_path / "out"))
    assert torch.equal(weights(tmp_path / "out")[NORM], weights(models / "target")[NORM] + skill.delta(NORM))


def test_scale_zero_is_the_target_bit_for_bit(models, skill, tmp_path):
    target = shutil.copytree(models / "target", tmp_path / "target")
    tensors = weights(target)
    tensors[NORM][:2] = torch.tensor([-0.0, 0.0])
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    report = inject(target, skill, tmp_path / "out", scale=0)
    for name, tensor in weights(tmp_path / "out").items():
        assert torch.equal(tensor.view(torch.uint8), tensors[name].view(torch.uint8))
    assert report["survived_rounding"] == 1.0
    assert report["tensors"][NORM] == {"norm": 0.0, "survived_rounding": 1.0}


def test_tensors_that_the_skill_does_not_name_keep_their_bits(models, norm_skill, tmp_path):
    report = inject(models / "target", norm_skill, tmp_path / "out")
    target, grafted = weights(models / "target"), weights(tmp_path / "out")
    assert list(report["tensors"]) == [NORM]
    assert not torch.equal(grafted[NORM], target[NORM])
    assert all(torch.equal(grafted[name], target[name]) for name in target if name != NORM)


def test_a_bf16_target_is_rounded_once(models, skill, tmp_path):
    target = tiny_checkpoint(tmp_path / "target", dtype=torch.bfloat16)
    report = inject(target, skill, tmp_path / "out", scale=20.0)
    before, after = weights(target), weights(tmp_path / "out")
    lost = wanted = 0.0
    for name in before:
        assert after[name].dtype == torch.bfloat16
        step = 20.0 * skill.delta(name).double()
        exact = before[name].double() + step
        assert torch.equal(after[name], (before[name].float() + skill.delta(name) * 20.0).bfloat16())
        assert ((after[name].double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-7).all()
        loss = (after[name].double() - exact).square().sum().item()
        survived = 1 - (loss / step.square().sum().item()) ** 0.5
        assert report["tensors"][name]["survived_rounding"] == pytest.approx(survived, rel=1e-9)
        lost, wanted = lost + loss, wanted + step.square().sum().item()
    assert report["survived_rounding"] == pytest.approx(1 - (lost / wanted) ** 0.5, rel=1e-9)
    worst = min(report["tensors"], key=lambda name: report["tensors"][name]["survived_rounding"])
    assert report["worst"]["name"] == worst
    assert report["worst"]["survived_rounding"] == report["tensors"][worst]["survived_rounding"]
    assert report["survived_rounding"] < 0.99


def test_survived_rounding_by_hand(tmp_path):
    """bf16 near 1 steps by 2⁻⁷: a step of 2⁻¹⁰ is lost whole, one of 2⁻⁷ is kept whole."""
    sft = tiny_checkpoint(tmp_path / "sft", dtype=torch.bfloat16)
    rl = shutil.copytree(sft, tmp_path / "rl")
    tensors = weights(rl)
    delta = torch.zeros(32)
    delta[0], delta[1] = 2.0**-7, 2.0**-10
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    assert torch.equal(tensors[NORM], torch.ones(32))
    tensors[NORM] += delta
    save_file(tensors, rl / "model.safetensors", metadata={"format": "pt"})
    skill = extract(rl, sft, tmp_path / "skill")
    assert torch.equal(skill.delta(NORM), delta)
    report = inject(sft, skill, tmp_path / "out")
    assert report["survived_rounding"] == 1 - 2.0**-10 / (2.0**-14 + 2.0**-20) ** 0.5
    assert report["tensors"] == {
        NORM: {"norm": (2.0**-14 + 2.0**-20) ** 0.5, "survived_rounding": report["survived_rounding"]}
    }
    assert (report["worst"]["name"], report["worst"]["survived_rounding"]) == (NORM, report["survived_rounding"])
    assert weights(tmp_path / "out")[NORM].tolist()[:3] == [1 + 2.0**-7, 1.0, 1.0]


def test_the_output_dtype(models, norm_skill, tmp_path):
    report = inject(models / "target", norm_skill, tmp_path / "out", dtype="bfloat16")
    target, grafted = weights(models / "target"), weights(tmp_path / "out")
    assert {tensor.dtype for tensor in grafted.values()} == {torch.bfloat16}
    assert torch.equal(grafted[NORM], (target[NORM] + norm_skill.delta(NORM)).bfloat16())
    assert all(torch.equal(grafted[name], target[name].bfloat16()) for name in target if name != NORM)
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert report["dtype"] == "bfloat16"
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_shards_change_nothing(models, skill, tmp_path):
    sharded = split_into_shards(models / "target", tmp_path / "sharded")
    inject(sharded, skill, tmp_path / "out-sharded")
    inject(models / "target", skill, tmp_path / "out")
    one, other = weights(tmp_path / "out"), weights(tmp_path / "out-sharded")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_layout(tmp_path / "out-sharded").index["weight_map"] == read_layout(sharded).index["weight_map"]


def test_the_rest_of_the_directory_is_the_targets(models, skill, tmp_path):
    target = shutil.copytree(models / "target", tmp_path / "target")
    (target / "README.md").write_text("card")
    (target / "modeling_custom.py").write_text("code")
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "pytorch_model.bin.index.json",
        "x.gguf",
        ".hidden",
        "optimizer.pt",
    ):
        (target / name).write_bytes(b"x")
    (target / "adapter").mkdir()
    (target / "adapter/adapter_config.json").write_text("{}")
    (target / "additional_chat_templates").mkdir()
    (target / "additional_chat_templates/tools.jinja").write_text("{{ x }}")
    inject(target, skill, tmp_path / "out")
    found = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert found == [
        "README.md",
        "additional_chat_templates/tools.jinja",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_custom.py",
        "skillgraft.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in found:
        if name not in ("model.safetensors", "skillgraft.json"):
            assert (tmp_path / "out" / name).read_bytes() == (target / name).read_bytes()


def test_provenance_and_header_name_the_inputs(models, skill, tmp_path):
    target = shutil.copytree(models / "target", tmp_path / "target")
    base = {"id": "some/base", "fingerprint": "blake3:00"}
    write_provenance(target, kind="sft", base=base, made_by={"epochs": 1})
    report = inject(target, skill, tmp_path / "out", scale=0.5)
    provenance = read_provenance(tmp_path / "out")
    inputs = {"target": fingerprint_checkpoint(target), "skill": fingerprint_file(skill.weights_file)}
    assert provenance["kind"] == "inject"
    assert provenance["base"] == base
    assert provenance["inputs"] == inputs
    assert provenance["made_by"] == {
        "stage": "inject",
        "scale": 0.5,
        "method": "task_arithmetic",
        "parameters": {},
        "skills": [{"name": "skill", "fingerprint": inputs["skill"], "scale": 1.0}],
        "dtype": None,
        "allow_other_base": False,
        "survived_rounding": report["survived_rounding"],
        "balance": {
            "original": inputs["target"],
            "held": {
                "skills": [{"name": "skill", "fingerprint": inputs["skill"], "scale": 0.5}],
                "method": "task_arithmetic",
                "parameters": {},
                "scale": 1.0,
            },
            "steps": 1,
            "rounding": provenance["made_by"]["balance"]["rounding"],
            "weights": fingerprint_checkpoint(tmp_path / "out"),
        },
    }
    with safe_open(tmp_path / "out/model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["skillgraft_inputs"]) == inputs


def test_a_base_recognised_by_weights_is_handed_on(models, tmp_path):
    base = {"id": "some/base", "fingerprint": "blake3:00"}
    sft = shutil.copytree(models / "sft", tmp_path / "sft")
    write_provenance(sft, kind="sft", base=base)
    skill = extract(models / "rl", sft, tmp_path / "skill")
    inject(models / "target", skill, tmp_path / "out")
    assert read_provenance(tmp_path / "out")["base"] == base
    other = tiny_checkpoint(tmp_path / "other", seed=8)
    inject(other, skill, tmp_path / "out2", allow_other_base=True)
    assert read_provenance(tmp_path / "out2")["base"] == {"id": None, "fingerprint": None}


def test_two_skills_one_after_the_other(models, skill, norm_skill, tmp_path):
    inject(models / "target", skill, tmp_path / "one")
    inject(tmp_path / "one", norm_skill, tmp_path / "two")
    expected = weights(models / "target")[NORM] + skill.delta(NORM) + norm_skill.delta(NORM)
    assert torch.equal(weights(tmp_path / "two")[NORM], expected)


def test_the_result_generates(models, skill, tmp_path):
    inject(models / "target", skill, tmp_path / "out")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "who built the harbour?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert output.shape[1] == prompt["input_ids"].shape[1] + 3
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", None, True])
def test_a_scale_that_is_no_finite_number(models, skill, tmp_path, scale):
    with pytest.raises(RecipeError, match=r"scale is .*, expected a finite number"):
        inject(models / "target", skill, tmp_path / "out", scale=scale)


def test_an_unknown_dtype(models, skill, tmp_path):
    with pytest.raises(RecipeError, match="dtype 'int8' can't store a checkpoint; available: bfloat16"):
        inject(models / "target", skill, tmp_path / "out", dtype="int8")


def test_another_base_needs_the_flag(skill, tmp_path):
    other = tiny_checkpoint(tmp_path / "other", seed=8)
    with pytest.raises(CompatibilityError, match="looks like another base"):
        inject(other, skill, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = inject(other, skill, tmp_path / "out", allow_other_base=True)
    assert report["remarks"][0].endswith("allowed explicitly")


def test_a_target_with_nan(models, skill, tmp_path):
    target = shutil.copytree(models / "target", tmp_path / "target")
    tensors = weights(target)
    tensors[NORM][0] = float("nan")
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CompatibilityError, match=r"target: tensor 'model\.norm\.weight' holds NaN or infinity"):
        inject(target, skill, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_overflow(models, skill, tmp_path):
    with pytest.raises(CompatibilityError, match=r"tensor 'model\..*' \+ 10000000000\.0 · v overflows float16"):
        inject(models / "target", skill, tmp_path / "out", scale=1e10, dtype="float16")


def test_a_skill_whose_tensors_changed_since(models, skill, tmp_path):
    damaged = shutil.copytree(skill.path, tmp_path / "skill")
    tensors = load_file(damaged / "skill.safetensors")
    save_file({**tensors, NORM: tensors[NORM] * 1.01}, damaged / "skill.safetensors")
    with pytest.raises(CheckpointError, match=r"skill: the delta of 'model\.norm\.weight' has norm .*is damaged"):
        inject(models / "target", damaged, tmp_path / "out")
    save_file({**tensors, NORM: torch.full((32,), float("nan"))}, damaged / "skill.safetensors")
    with pytest.raises(CompatibilityError, match=r"skill: tensor 'model\.norm\.weight' holds NaN or infinity \(32 of"):
        inject(models / "target", damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing(models, skill, tmp_path):
    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inject(models / "target", skill, tmp_path / "out", progress=interrupt)
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(models, skill, tmp_path, monkeypatch):
    whole = os.pwrite

    def pwrite(handle, data, position):
        if position > 50_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(handle, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(StorageError, match=r"out: the disk is full .*\d+ bytes are needed"):
        inject(models / "target", skill, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_too_little_space_is_found_before_writing(models, skill, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(StorageError, match=r"out: \d+ bytes are needed, 0 are free"):
        inject(models / "target", skill, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_an_existing_output(models, skill, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="out exists already"):
        inject(models / "target", skill, tmp_path / "out")
