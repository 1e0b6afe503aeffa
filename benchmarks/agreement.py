"""Compare sampled tensors of merges with each other and with the definition in fp64. Started by merge.py.

    python benchmarks/agreement.py CASE SAMPLES INPUTS

SAMPLES/<program>/<tensor>.bin holds bf16, INPUTS is what checkpoints.py made. Prints JSON: per pair the largest
absolute difference, also as a part of the tensor's root mean square; the largest distance in ulp of bf16, which is
huge where results near zero differ; and the share of elements that differ. For `ties` also, how many differing
elements are not explained by equal magnitudes at the threshold: which of several equal deltas are kept is nobody's
definition.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import ADAPTER, LORA_ALPHA, LORA_RANK, read_raw

TIES_DENSITY = 0.2


def from_bf16(stored: bytes) -> np.ndarray:
    bits = np.frombuffer(stored, dtype=np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32)


def round_to_bf16(values: np.ndarray) -> np.ndarray:
    """Round fp64 values to the nearest bf16 once, ties to even."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(np.ldexp(mantissa, 8)), exponent - 8).astype(np.float32)


def ordinals(values: np.ndarray) -> np.ndarray:
    """The place of each bf16 number among all of them: neighbours differ by one."""
    bits = (values.view(np.uint32) >> 16).astype(np.int32)
    return np.where(bits >= 0x8000, 0x8000 - bits, bits)


def compare(left: np.ndarray, right: np.ndarray) -> dict[str, float]:
    distance = np.abs(ordinals(left) - ordinals(right))
    return {
        "max_abs": float(np.abs(left - right).max()),
        "max_abs_over_rms": float(np.abs(left - right).max() / np.sqrt(np.mean(np.square(right)))),
        "max_ulp": int(distance.max()),
        "share_differing": float((distance > 0).mean()),
    }


def operand(inputs: Path, name: str, tensor: str) -> np.ndarray:
    stored = read_raw(inputs / name, tensor)
    if stored is None:
        raise SystemExit(f"{inputs / name} holds no tensor {tensor}")
    return from_bf16(stored).astype(np.float64)


def definition(case: str, inputs: Path, tensor: str) -> np.ndarray | None:
    """The exact result for cases that have one: linear combinations, and scale · B·A."""
    if case == "linear":
        return 0.5 * operand(inputs, "a", tensor) + 0.5 * operand(inputs, "b", tensor)
    base = operand(inputs, "base", tensor)
    if case == "task_arithmetic":
        return base + 0.5 * (operand(inputs, "a", tensor) - base) + 0.5 * (operand(inputs, "b", tensor) - base)
    if case == "lora":
        stem = f"base_model.model.{tensor.removesuffix('.weight')}"
        stored = [read_raw(inputs / ADAPTER, f"{stem}.lora_{side}.weight") for side in "AB"]
        a, b = (np.frombuffer(part or b"", dtype=np.float32).astype(np.float64) for part in stored)
        if not a.size:
            return base
        product = b.reshape(-1, LORA_RANK) @ a.reshape(LORA_RANK, -1)
        return base + LORA_ALPHA / LORA_RANK * product.ravel()
    return None


def unexplained(inputs: Path, tensor: str, differing: np.ndarray) -> int:
    """Count the differing elements of a TIES merge that are not of the magnitude at which one operand was cut."""
    base = operand(inputs, "base", tensor)
    for name in ("a", "b"):
        magnitude = np.abs(operand(inputs, name, tensor) - base)
        rank = max(1, int(TIES_DENSITY * magnitude.size))
        threshold = np.partition(magnitude, magnitude.size - rank)[magnitude.size - rank]
        differing = differing & (magnitude != threshold)
    return int(differing.sum())


def agree(case: str, samples: Path, inputs: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    programs = sorted((folder.name for folder in samples.iterdir()), key=lambda name: (name != "skillgraft", name))
    for file in sorted((samples / programs[0]).glob("*.bin")):
        tensor = file.name.removesuffix(".bin")
        outputs = {program: from_bf16((samples / program / file.name).read_bytes()) for program in programs}
        exact = definition(case, inputs, tensor)
        rows: dict[str, Any] = {}
        if exact is not None:
            rounded = round_to_bf16(exact)
            rows |= {f"{program} - fp64 definition": compare(out, rounded) for program, out in outputs.items()}
        for program in programs[1:]:
            left, right = outputs[programs[0]], outputs[program]
            row = compare(left, right)
            if case == "ties":
                row["unexplained"] = unexplained(inputs, tensor, left != right)
            rows[f"{programs[0]} - {program}"] = row
        result[tensor] = rows
    return result


if __name__ == "__main__":
    print(json.dumps(agree(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
