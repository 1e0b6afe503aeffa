import pytest
import torch

from tests.tiny import tiny_checkpoint, tiny_finetune


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
