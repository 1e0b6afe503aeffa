"""Make the checkpoints that the benchmarks merge: Llama shape, bf16, reproducible, with bounded memory.

    python benchmarks/checkpoints.py --size tiny --folder /tmp/bench-merge/tiny

Writes `base`, two fine-tunes `a` and `b` (base + noise of a twentieth of its scale, so that the deltas are small and
dense as after fine-tuning; with `deltas="rl"` their matrices have the spectrum of a real skill) and a PEFT LoRA
`adapter` on the base. Weights are random: only shapes, dtypes and the
statistics of the deltas matter here. The same size and seed give the same bytes; a folder whose `spec.json` matches
is reused.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

FORMAT = 1
MODELS = ("base", "a", "b")
ADAPTER = "adapter"
SPEC_FILE = "spec.json"
BLOCK = 1 << 23  # elements made at once
WEIGHT_STD = 0.02
DELTA_STD = 0.001
LORA_RANK, LORA_ALPHA = 16, 32
LORA_A_STD, LORA_B_STD = 0.02, 0.006  # alpha / r · B·A then has about the scale of DELTA_STD
RL_SPECTRUM = {
    0: 1.0, 1: 0.652, 2: 0.570, 4: 0.499, 8: 0.438, 16: 0.379, 32: 0.320, 64: 0.261, 128: 0.200, 192: 0.162,
    256: 0.134, 320: 0.111, 384: 0.092, 448: 0.0748, 512: 0.0584, 575: 0.0221,
}  # fmt: skip
"""Place among 576 singular values -> size, the first as 1: the mean over MLP matrices of every third layer of the skill
that 117 steps of GRPO on all weights of the default model gave (results/kept-gain.json)."""
SAFETENSORS_CODES = {"bfloat16": ("BF16", 2), "float32": ("F32", 4)}


@dataclass(frozen=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    shard_bytes: int
    deltas: str = "noise"

    def projections(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one block, in checkpoint order: name → (out, in)."""
        kv = self.hidden // self.heads * self.kv_heads
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        named: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            named[f"{prefix}.input_layernorm.weight"] = (self.hidden,)
            named |= {f"{prefix}.{name}.weight": shape for name, shape in self.projections().items()}
            named[f"{prefix}.post_attention_layernorm.weight"] = (self.hidden,)
        return named | {"model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocab, self.hidden)}

    def lora_tensors(self) -> dict[str, tuple[int, ...]]:
        named: dict[str, tuple[int, ...]] = {}
        for layer in range(self.layers):
            for name, (rows, columns) in self.projections().items():
                prefix = f"base_model.model.model.layers.{layer}.{name}"
                named[f"{prefix}.lora_A.weight"] = (LORA_RANK, columns)
                named[f"{prefix}.lora_B.weight"] = (rows, LORA_RANK)
        return named

    @property
    def parameters(self) -> int:
        return sum(elements(shape) for shape in self.tensors().values())

    @property
    def model_bytes(self) -> int:
        return 2 * self.parameters

    def sampled_tensors(self) -> list[str]:
        """A few tensors of every kind, by which outputs are compared."""
        middle, last = self.layers // 2, self.layers - 1
        return [
            "model.layers.0.self_attn.k_proj.weight",
            f"model.layers.{middle}.self_attn.q_proj.weight",
            f"model.layers.{last}.mlp.down_proj.weight",
            "model.norm.weight",
        ]


SIZES = {
    "tiny": Shape(64, 2, 4, 2, 128, 1024, shard_bytes=200_000),
    "1.1b": Shape(2048, 22, 32, 4, 5632, 32000, shard_bytes=5_000_000_000),
    "7b": Shape(4096, 32, 32, 32, 11008, 32000, shard_bytes=5_000_000_000),
}


def elements(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def specification(size: str, seed: int) -> dict[str, Any]:
    constants = [WEIGHT_STD, DELTA_STD, LORA_RANK, LORA_ALPHA, LORA_A_STD, LORA_B_STD, BLOCK]
    shape = asdict(SIZES[size])
    if shape["deltas"] == "noise":
        del shape["deltas"]  # what was made before there were others still counts
    return {"format": FORMAT, "size": size, "seed": seed, "shape": shape, "constants": constants}


def is_ready(folder: Path, size: str, seed: int) -> bool:
    file = folder / SPEC_FILE
    return file.is_file() and json.loads(file.read_text()) == specification(size, seed)


def make(folder: Path, size: str, seed: int) -> None:
    """Write everything into `folder`, unless it is there already."""
    if is_ready(folder, size, seed):
        return
    shape = SIZES[size]
    (folder / SPEC_FILE).unlink(missing_ok=True)
    for name in (*MODELS, ADAPTER):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    write_models(folder, shape, seed)
    write_adapter(folder, shape, seed)
    write_sidecar_files([folder / name for name in MODELS], shape, seed)
    (folder / SPEC_FILE).write_text(json.dumps(specification(size, seed), indent=2))


def write_models(folder: Path, shape: Shape, seed: int) -> None:
    import torch

    shards = split_into_shards(shape.tensors(), shape.shard_bytes)
    for number, tensors in enumerate(shards, start=1):
        file_name = shard_name(number, len(shards))
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(open(folder / name / file_name, "wb")) for name in MODELS}
            for file in files.values():
                write_header(file, tensors, "bfloat16")
            for tensor, dimensions in tensors.items():
                centre = 1.0 if len(dimensions) == 1 else 0.0
                shaped = shape.deltas == "rl" and len(dimensions) == 2 and ".layers." in tensor
                whole = {name: spectral(f"{seed} {tensor} {name}", dimensions) for name in MODELS[1:] if shaped}
                done = 0
                for key, length in blocks(seed, tensor, elements(dimensions)):
                    base = (normal(f"{key} base", length) * WEIGHT_STD + centre).to(torch.bfloat16)
                    files["base"].write(raw(base))
                    for name in MODELS[1:]:
                        delta = whole[name][done : done + length] if shaped else normal(f"{key} {name}", length)
                        files[name].write(raw(delta.mul_(DELTA_STD).add_(base).to(torch.bfloat16)))
                    done += length
    if len(shards) > 1:
        for name in MODELS:
            write_index(folder / name, shards, 2)


def write_adapter(folder: Path, shape: Shape, seed: int) -> None:
    tensors = shape.lora_tensors()
    with open(folder / ADAPTER / "adapter_model.safetensors", "wb") as file:
        write_header(file, tensors, "float32")
        for tensor, dimensions in tensors.items():
            std = LORA_A_STD if ".lora_A." in tensor else LORA_B_STD
            for key, length in blocks(seed, tensor, elements(dimensions)):
                file.write(raw(normal(key, length) * std))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str((folder / "base").resolve()),
        "r": LORA_RANK,
        "lora_alpha": LORA_ALPHA,
        "lora_dropout": 0.0,
        "target_modules": sorted(name.rpartition(".")[2] for name in shape.projections()),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    (folder / ADAPTER / "adapter_config.json").write_text(json.dumps(config, indent=2))


def write_sidecar_files(folders: list[Path], shape: Shape, seed: int) -> None:
    """Write config and a tokenizer that was trained to the size of the vocabulary."""
    import tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=shape.vocab,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(made_up_text(seed, words=2 * shape.vocab), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    if len(tokenizer) > shape.vocab:
        raise SystemExit(f"the tokenizer has {len(tokenizer)} tokens, the embedding {shape.vocab} rows")
    for folder in folders:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def made_up_text(seed: int, words: int) -> Iterator[str]:
    """Yield lines of pseudo-words, each word several times, so that enough merges are worth learning."""
    rng = random.Random(seed)
    syllables = [first + vowel + last for first in "bdfgklmnprstvz" for vowel in "aeiou" for last in ("", *"lnrst")]
    vocabulary = ["".join(rng.choices(syllables, k=rng.randint(2, 5))) for _ in range(words)]
    for _ in range(4):
        rng.shuffle(vocabulary)
        for start in range(0, words, 100):
            yield " ".join(vocabulary[start : start + 100])


def split_into_shards(tensors: dict[str, tuple[int, ...]], limit: int, width: int = 2) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = [{}]
    filled = 0
    for name, shape in tensors.items():
        size = width * elements(shape)
        if filled and filled + size > limit:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards


def shard_name(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def write_index(folder: Path, shards: list[dict[str, Any]], width: int) -> None:
    weight_map = {
        tensor: shard_name(number, len(shards)) for number, tensors in enumerate(shards, start=1) for tensor in tensors
    }
    total = sum(width * elements(shape) for tensors in shards for shape in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_header(file: BinaryIO, tensors: dict[str, Any], dtype: str) -> None:
    code, width = SAFETENSORS_CODES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in tensors.items():
        end = offset + width * elements(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint or an adapter."""
    return sorted(folder.glob("*.safetensors"))


def read_raw(folder: Path, tensor: str) -> bytes | None:
    """The stored bytes of one tensor, None where no file holds it."""
    for path in weight_files(folder):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(length)).get(tensor)
            if entry is not None:
                start, end = entry["data_offsets"]
                file.seek(8 + length + start)
                return file.read(end - start)
    return None


def blocks(seed: int, tensor: str, length: int) -> Iterator[tuple[str, int]]:
    for start in range(0, length, BLOCK):
        yield f"{seed} {tensor} {start}", min(BLOCK, length - start)


def normal(key: str, length: int) -> torch.Tensor:
    """Return standard normal numbers that depend on `key` alone."""
    import torch

    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    return torch.randn(length, generator=torch.Generator().manual_seed(seed))


@functools.cache
def directions(rows: int, rank: int) -> torch.Tensor:
    """Return orthonormal columns, the same for every matrix of a shape: `spectral` turns them about."""
    import torch

    return torch.linalg.qr(normal(f"directions {rows} {rank}", rows * rank).reshape(rows, rank))[0]


def spectral(key: str, dimensions: tuple[int, ...]) -> torch.Tensor:
    """Return a matrix with `RL_SPECTRUM` and a mean square of 1, flattened, its directions drawn from `key`."""
    import numpy as np
    import torch

    rows, columns = dimensions
    rank = min(dimensions)
    values = np.interp(np.linspace(0, max(RL_SPECTRUM), rank), list(RL_SPECTRUM), list(RL_SPECTRUM.values()))
    values *= (rows * columns / (values**2).sum()) ** 0.5
    order = np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little"))
    left, right = (directions(side, rank)[order.permutation(side)] for side in dimensions)
    signed = torch.from_numpy((values * order.choice([-1.0, 1.0], rank)).astype(np.float32))
    return ((left * signed) @ right.T).reshape(-1)


def raw(tensor: torch.Tensor) -> Any:
    import torch

    return tensor.view(torch.uint8).numpy().data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make(arguments.folder, arguments.size, arguments.seed)
