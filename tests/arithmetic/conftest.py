import shutil

import pytest
import torch
from safetensors.torch import save_file

from skillgraft.arithmetic import extract
from tests.tiny import edit_json, tiny_checkpoint, tiny_finetune, weights


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Base, SFT, RL and target checkpoints that no test changes."""
    folder = tmp_path_factory.mktemp("models")
    tiny_checkpoint(folder / "base")
    tiny_finetune(folder / "base", folder / "sft", seed=1)
    tiny_finetune(folder / "sft", folder / "rl", seed=2, size=1e-4)
    tiny_finetune(folder / "base", folder / "target", seed=3)
    return folder


@pytest.fixture(scope="session")
def family(tmp_path_factory):
    """A base and three fine-tunes of it, in bf16, with deltas well above the rounding."""
    folder = tmp_path_factory.mktemp("family")
    tiny_checkpoint(folder / "base", dtype=torch.bfloat16)
    for seed, name in enumerate(("a", "b", "c"), start=1):
        tiny_finetune(folder / "base", folder / name, seed=seed, size=5e-3)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder with a base, targets of it in bf16 and fp32, and two skills, that no test changes."""
    folder = tmp_path_factory.mktemp("removal")
    tiny_checkpoint(folder / "base")
    tiny_finetune(folder / "base", folder / "sft", seed=1)
    tiny_finetune(folder / "base", folder / "float32", seed=2)
    tensors = {name: tensor.bfloat16() for name, tensor in weights(folder / "float32").items()}
    shutil.copytree(folder / "float32", folder / "bfloat16")
    save_file(tensors, folder / "bfloat16/model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "bfloat16/config.json", dtype="bfloat16")
    for seed, name in enumerate(("a", "b"), start=5):
        rl = tiny_finetune(folder / "sft", folder / f"rl-{name}", seed=seed, size=3e-3)
        extract(rl, folder / "sft", folder / name)
    return folder
