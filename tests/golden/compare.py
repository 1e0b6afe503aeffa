"""What a golden result is made of and how a later one is compared with it.

A tensor or a file is its hash. Bits of training, of matrix decompositions and of Torch's random numbers differ from one
processor or library version to another, so such results carry the machine's signature. Where that is equal, all must be
equal; elsewhere hashes are passed over and numbers may differ by a share (`RELATIVE`, or what a test says) or by
`ABSOLUTE`, whichever allows more.
"""

import importlib.metadata
import json
import math
import platform
from pathlib import Path

import torch
from blake3 import blake3
from safetensors.torch import load_file

FOLDER = Path(__file__).parent
RELATIVE, ABSOLUTE = 2e-2, 1e-3
HASH = "blake3:"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "numpy", "tokenizers")


def signature():
    """What decides the last bits of training on this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = " ".join(sorted(found.get("flags", found.get("Features", "")).split()))
    return {
        "machine": platform.machine(),
        "vendor": found.get("vendor_id", ""),
        "flags": digest(flags.encode()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def digest(data):
    """The hash of bytes."""
    return HASH + blake3(data).hexdigest(length=16)


def tensor_hash(tensor):
    """The hash of a tensor's bytes."""
    return digest(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())


def tensors(folder):
    """File of a folder -> name -> hash of each tensor's bytes, whatever headers say."""
    return {
        file.relative_to(folder).as_posix(): {name: tensor_hash(t) for name, t in sorted(load_file(file).items())}
        for file in sorted(Path(folder).rglob("*.safetensors"))
    }


def tensors_with_norms(folder):
    """As `tensors`, with the norm of each beside its hash."""
    return {
        file.relative_to(folder).as_posix(): {
            name: {"hash": tensor_hash(t), "norm": t.double().norm().item()}
            for name, t in sorted(load_file(file).items())
        }
        for file in sorted(Path(folder).rglob("*.safetensors"))
    }


def write_golden(name, content):
    """Write a golden result, one number or hash a line, so that a change can be read in a diff."""
    (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def read_golden(name):
    """Return a golden result."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def differences(golden, found, exact=True, where="", relative=RELATIVE):
    """Return a line for each place where a result is not the golden one."""
    if isinstance(golden, dict) and isinstance(found, dict):
        lines = [f"{where}/{key}: is gone" for key in golden if key not in found]
        lines += [f"{where}/{key}: is new" for key in found if key not in golden]
        both = [key for key in golden if key in found]
        return lines + [
            line for k in both for line in differences(golden[k], found[k], exact, f"{where}/{k}", relative)
        ]
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        pairs = enumerate(zip(golden, found, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, exact, f"{where}/{i}", relative)]
    if golden == found and type(golden) is type(found):
        return []
    return [] if not exact and _near(golden, found, relative) else [f"{where}: {golden!r} became {found!r}"]


def _near(golden, found, relative):
    if isinstance(golden, str) and isinstance(found, str):
        return golden.startswith(HASH) and found.startswith(HASH)
    numbers = isinstance(golden, int | float) and isinstance(found, int | float)
    return numbers and math.isclose(golden, found, rel_tol=relative, abs_tol=ABSOLUTE)


def check(golden, found, exact=True, relative=RELATIVE):
    """Fail with the first places where a result is not the golden one."""
    lines = differences(golden, json.loads(json.dumps(found)), exact, relative=relative)
    shown = "\n".join(lines[:20])
    assert not lines, f"{len(lines)} differences; python -m tests.golden.update writes results anew:\n{shown}"
