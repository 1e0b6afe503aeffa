import pytest

from skillgraft.arithmetic import extract
from tests.tiny import tiny_checkpoint, tiny_finetune


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A base, a fine-tune of it, and two skills."""
    folder = tmp_path_factory.mktemp("chat").resolve()
    tiny_checkpoint(folder / "base")
    tiny_finetune(folder / "base", folder / "sft", seed=3, size=2e-2)
    for seed, name in enumerate(("recall", "tools"), start=1):
        rl = tiny_finetune(folder / "base", folder / f"rl-{name}", seed=seed, size=3e-2)
        extract(rl, folder / "base", folder / name)
    return folder
