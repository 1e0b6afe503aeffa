import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from skillgraft.arithmetic import extract
from tests.tiny import tiny_checkpoint, tiny_finetune, weights

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory):
    """A bf16 base, two fine-tunes a and b, an RL model on a with its skill, a LoRA adapter on the base."""
    folder = tmp_path_factory.mktemp("zoo").resolve()
    tiny_checkpoint(folder / "base", dtype=torch.bfloat16)
    for seed, name in enumerate("ab", start=1):
        tiny_finetune(folder / "base", folder / name, seed=seed, size=5e-3)
    tiny_finetune(folder / "a", folder / "rl", seed=3, size=5e-4)
    extract(folder / "rl", folder / "a", folder / "skill")
    shutil.copytree(folder / "base", folder / "merged")
    tensors = weights(folder / "base")
    (folder / "adapter").mkdir()
    (folder / "adapter/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"})
    )
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for name, tensor in tensors.items():
        if name.split(".")[-2] in LINEAR:
            out, columns = tensor.shape
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{stem}.lora_A.weight"] = torch.randn((2, columns), generator=generator) / 20
            factors[f"{stem}.lora_B.weight"] = torch.randn((out, 2), generator=generator) / 20
    save_file(factors, folder / "adapter/adapter_model.safetensors")
    return folder


@pytest.fixture(scope="session")
def vectors(zoo):
    """The same vectors in fp64, made apart from the engine: by label, then by tensor."""
    base, a, b, rl = ({n: t.double() for n, t in weights(zoo / name).items()} for name in ("base", "a", "b", "rl"))
    factors = weights(zoo / "adapter")
    stem = "base_model.model."
    adapter = {
        name: 2.0
        * factors[f"{stem}{name.removesuffix('.weight')}.lora_B.weight"].double()
        @ factors[f"{stem}{name.removesuffix('.weight')}.lora_A.weight"].double()
        if f"{stem}{name.removesuffix('.weight')}.lora_A.weight" in factors
        else torch.zeros_like(tensor)
        for name, tensor in base.items()
    }
    return {
        "base": base,
        "a": {n: a[n] - base[n] for n in base},
        "b": {n: b[n] - base[n] for n in base},
        "rl": {n: rl[n] - a[n] for n in base},
        "adapter": adapter,
    }
