import itertools
import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from skillgraft.arithmetic import extract, inject
from skillgraft.checkpoint import fingerprint_checkpoint, tokenizer_identity, write_provenance
from skillgraft.errors import CheckpointError, CompatibilityError, MissingPathError, OutputExistsError, RecipeError
from tests.tiny import edit_json, split_into_shards, tiny_checkpoint, tiny_finetune, weights

NORM = "model.norm.weight"


def change_weights(path, **tensors):
    kept = {name: tensor for name, tensor in {**weights(path), **tensors}.items() if tensor is not None}
    save_file(kept, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_the_vector_is_rl_minus_sft(models, tmp_path):
    calls = []
    skill = extract(
        models / "rl",
        models / "sft",
        tmp_path / "skill",
        domain="almanac",
        recipe="past",
        seed=4,
        license="mit",
        progress=lambda *call: calls.append(call),
    )
    rl, sft = weights(models / "rl"), weights(models / "sft")
    assert set(skill.names) == set(sft)
    for name in sft:
        assert torch.equal(skill.delta(name), rl[name] - sft[name])
    manifest = skill.manifest
    assert manifest.formula == "v = θ_RL − θ_SFT"
    assert (manifest.domain, manifest.recipe, manifest.seed, manifest.license) == ("almanac", "past", 4, "mit")
    assert manifest.reconstruction_error == 0.0
    assert manifest.sft.fingerprint == fingerprint_checkpoint(models / "sft")
    assert manifest.rl.fingerprint == fingerprint_checkpoint(models / "rl")
    assert manifest.tokenizer == tokenizer_identity(models / "sft")
    assert sorted(path.name for path in skill.path.iterdir()) == ["README.md", "skill.json", "skill.safetensors"]
    total = sum(tensor.numel() for tensor in sft.values())
    assert [done for done, _ in calls] == list(itertools.accumulate(tensor.numel() for tensor in sft.values()))
    assert calls[-1] == (total, total)
    assert calls[0] == (next(iter(sft.values())).numel(), total)
    with safe_open(skill.weights_file, "pt") as file:
        inputs = json.loads(file.metadata()["skillgraft_inputs"])
    assert inputs == {"rl": manifest.rl.fingerprint, "sft": manifest.sft.fingerprint}


def test_unchanged_tensors_are_left_out(models, tmp_path):
    rl = tiny_finetune(models / "sft", tmp_path / "rl", names=[NORM])
    skill = extract(rl, models / "sft", tmp_path / "skill")
    assert skill.names == (NORM,)
    assert load_file(skill.weights_file).keys() == {NORM}


def test_injected_into_its_sft_model_it_gives_rl(models, tmp_path):
    """Bit for bit where rl and sft are within a factor of 2, else within one ulp of the larger of the two."""
    extract(models / "rl", models / "sft", tmp_path / "skill")
    inject(models / "sft", tmp_path / "skill", tmp_path / "again")
    again, rl, sft = weights(tmp_path / "again"), weights(models / "rl"), weights(models / "sft")
    for name in rl:
        larger = torch.maximum(rl[name].abs(), sft[name].abs())
        error = (again[name] - rl[name]).abs()
        assert (error <= torch.finfo(torch.float32).eps * larger).all()
        close = (rl[name] / sft[name] >= 0.5) & (rl[name] / sft[name] <= 2)
        assert (error[close] == 0).all()


def test_injected_into_its_bf16_sft_model_it_gives_rl_exactly(models, tmp_path):
    sft = tiny_checkpoint(tmp_path / "sft", dtype=torch.bfloat16)
    rl = tiny_finetune(sft, tmp_path / "rl", size=1e-3)
    extract(rl, sft, tmp_path / "skill")
    report = inject(sft, tmp_path / "skill", tmp_path / "again")
    assert report["survived_rounding"] > 1 - 1e-6
    again = weights(tmp_path / "again")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights(rl).items())


def test_shards_change_nothing(models, tmp_path):
    rl = split_into_shards(models / "rl", tmp_path / "rl", 2)
    sft = split_into_shards(models / "sft", tmp_path / "sft", 3)
    whole = extract(models / "rl", models / "sft", tmp_path / "whole")
    sharded = extract(rl, sft, tmp_path / "sharded")
    assert set(whole.names) == set(sharded.names)
    assert all(torch.equal(whole.delta(name), sharded.delta(name)) for name in whole.names)
    assert whole.manifest.tensors == sharded.manifest.tensors
    assert whole.manifest.sketch == sharded.manifest.sketch


def test_bf16_storage_states_its_error(models, tmp_path):
    exact = extract(models / "rl", models / "sft", tmp_path / "exact")
    half = extract(models / "rl", models / "sft", tmp_path / "half", dtype="bfloat16")
    rl, sft = weights(models / "rl"), weights(models / "sft")
    lost = total = 0.0
    for name in exact.names:
        assert half.manifest.tensors[name].dtype == "BF16"
        assert torch.equal(half.delta(name), exact.delta(name).bfloat16().float())
        difference = rl[name].double() - sft[name].double()
        lost += (half.delta(name).double() - difference).square().sum().item()
        total += difference.square().sum().item()
    assert half.manifest.reconstruction_error == pytest.approx((lost / total) ** 0.5, rel=1e-9)
    assert 5e-4 < half.manifest.reconstruction_error < 4e-3
    assert half.weights_file.stat().st_size < 0.6 * exact.weights_file.stat().st_size


def test_the_base_comes_from_provenance(models, tmp_path):
    rl, sft = (shutil.copytree(models / name, tmp_path / name) for name in ("rl", "sft"))
    base = {"id": "some/base", "fingerprint": "blake3:00"}
    write_provenance(rl, kind="rl", base=base)
    assert extract(rl, sft, tmp_path / "one").manifest.base.model_dump() == base
    other = {"id": "sft/base", "fingerprint": "blake3:01"}
    write_provenance(sft, kind="sft", base=other)
    assert extract(rl, sft, tmp_path / "two").manifest.base.model_dump() == other


@pytest.fixture
def copies(models, tmp_path):
    return [shutil.copytree(models / name, tmp_path / name) for name in ("rl", "sft")]


def refuse(copies, tmp_path, error, message):
    with pytest.raises(error, match=message):
        extract(*copies, tmp_path / "skill")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rl", "sft"]


def test_other_names(copies, tmp_path):
    change_weights(copies[0], **{NORM: None})
    refuse(copies, tmp_path, CompatibilityError, r"rl has no tensor 'model\.norm\.weight', which .*sft has \(1 such\)")
    change_weights(copies[0], **{NORM: torch.ones(32), "extra": torch.ones(1)})
    refuse(copies, tmp_path, CompatibilityError, r"sft has no tensor 'extra', which .*rl has")


def test_an_output_head_stored_beside_a_tie(copies, tmp_path):
    change_weights(copies[0], **{"lm_head.weight": torch.zeros(320, 32)})
    refuse(
        copies, tmp_path, CompatibilityError, r"no tensor 'lm_head\.weight'.*tied in one file and stored in the other"
    )


def test_other_shapes(copies, tmp_path):
    change_weights(copies[0], **{NORM: torch.ones(31)})
    refuse(copies, tmp_path, CompatibilityError, r"'model\.norm\.weight' has shape \[31\] in .*rl and \[32\] in .*sft")


def test_float_against_integer(copies, tmp_path):
    change_weights(copies[0], **{NORM: torch.ones(32, dtype=torch.int32)})
    refuse(copies, tmp_path, CompatibilityError, r"'model\.norm\.weight' is I32 in .*rl and F32 in .*sft")


def test_equal_integers_are_passed_over_and_others_refused(copies, tmp_path):
    for path in copies:
        change_weights(path, ids=torch.arange(3))
    skill = extract(*copies, tmp_path / "ok")
    assert "ids" not in skill.names
    shutil.rmtree(tmp_path / "ok")
    change_weights(copies[0], ids=torch.arange(3) + 1)
    refuse(copies, tmp_path, CompatibilityError, r"rl: tensor 'ids' is torch\.int64 and differs")


def test_another_tokenizer(copies, tmp_path):
    content = json.loads((copies[0] / "tokenizer.json").read_text())
    content["added_tokens"].append({"id": 319, "content": "<new>"})
    (copies[0] / "tokenizer.json").write_text(json.dumps(content))
    refuse(copies, tmp_path, CompatibilityError, r"rl and .*sft have different tokenizers")
    (copies[0] / "tokenizer.json").unlink()
    refuse(copies, tmp_path, CheckpointError, r"rl: a checkpoint without tokenizer")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tie_word_embeddings": False}, "tie_word_embeddings is False, expected True"),
        ({"num_attention_heads": 2, "head_dim": 16}, "num_attention_heads is 2, expected 4"),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, r"RoPE rope_theta is 500000\.0"),
    ],
)
def test_other_architecture_facts(copies, tmp_path, change, message):
    edit_json(copies[0] / "config.json", **change)
    refuse(copies, tmp_path, CompatibilityError, message)


@pytest.mark.parametrize("operand", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity(copies, tmp_path, operand, value):
    tensor = weights(copies[operand])[NORM]
    tensor[3] = value
    change_weights(copies[operand], **{NORM: tensor})
    message = rf"{copies[operand].name}: tensor 'model\.norm\.weight' holds 1 elements that are NaN or infinite"
    refuse(copies, tmp_path, CompatibilityError, message)


def test_no_difference_at_all(copies, tmp_path):
    refuse([copies[1], copies[1]], tmp_path, CompatibilityError, "have the same weights: there is no skill to extract")


def test_wrong_arguments(models, tmp_path):
    with pytest.raises(RecipeError, match="dtype 'bfloat' can't store a skill; did you mean 'bfloat16'"):
        extract(models / "rl", models / "sft", tmp_path / "skill", dtype="bfloat")
    with pytest.raises(MissingPathError, match="nothing: no such directory"):
        extract(tmp_path / "nothing", models / "sft", tmp_path / "skill")
    (tmp_path / "skill").mkdir()
    with pytest.raises(OutputExistsError, match="skill exists already"):
        extract(models / "rl", models / "sft", tmp_path / "skill")


def test_an_interrupt_leaves_nothing(models, tmp_path):
    def interrupt(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(models / "rl", models / "sft", tmp_path / "skill", progress=interrupt)
    assert os.listdir(tmp_path) == []
